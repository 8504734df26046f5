export { hashApiKey, makeApiKey } from './api_keys'
export { type ApiKey, createKeySecurity, type KeySecurityOptions, OPEN_ROUTES } from './key_security'
