/** Security by API keys: every route is closed, unless it is opened by name. */
import { createHmac, randomBytes } from 'node:crypto'
import { TensorRTError } from '../../errors'
import { ArgumentReader, closest, describeValue, invalidArgument } from '../../runtime'
import { checkLimits } from '../limits'
import { ROUTES } from '../routes'
import type { Caller, Refusal, RequestFacts, RequestHead, RequestLimits, Security, TokenizeFacts } from '../seams'
import { KeyRing } from './api_keys'
import { RateLimit } from './rate_limit'

export interface ApiKey {
  /** What logs, metrics and spans call it. Unique. */
  name: string
  /** Of the key, as {@link hashApiKey} makes it. */
  sha256: string
  /** Limits of its requests, in place of the server's. */
  limits?: Partial<RequestLimits> | undefined
  /** Requests at once; more are refused with 429. Default: no limit. */
  maxConcurrent?: number | undefined
  /**
   * Requests a minute, with as many at once after a quiet minute; more are refused with 429. One to /tokenize or /detokenize
   * counts like one for work. Default: no limit.
   */
  requestsPerMinute?: number | undefined
  /** Names of the models that it may use. Default: all. */
  models?: readonly string[] | undefined
  /**
   * Keys of one salt share cached prefixes. Default: a salt of its own, so that no key learns by timing what others ask.
   */
  cacheSalt?: string | undefined
}

export interface KeySecurityOptions {
  /** At least one. */
  keys: readonly ApiKey[]
  /** Routes that need no key, by their patterns. Default: /health/live and /health/ready. */
  open?: readonly string[] | undefined
  /** All keys share cached prefixes, unless they have a `cacheSalt`. Default false. */
  shareCache?: boolean | undefined
  /** Milliseconds of a clock that never goes back. */
  now?: (() => number) | undefined
}

/** Routes that need no key: who watches over a process must see it without secrets. */
export const OPEN_ROUTES: readonly string[] = ['/health/live', '/health/ready']

/** By their patterns; `other` are the paths that are none. */
const KNOWN_ROUTES: ReadonlySet<string> = new Set([...ROUTES.map(({ name }) => name), 'other'])
const KEY_FIELDS = ['name', 'sha256', 'limits', 'maxConcurrent', 'requestsPerMinute', 'models', 'cacheSalt'] as const satisfies readonly (keyof ApiKey)[]
const NAME = /^[\w.@-]{1,64}$/
const SHA256 = /^[0-9a-f]{64}$/i

/** A key with what counts against it. */
interface Entry extends ApiKey {
  caller: Caller
  running: number
  rate: RateLimit | undefined
}

/**
 * Lets in who has a key, as `authorization: Bearer <key>` or `x-api-key: <key>`.
 *
 * @throws ERR_INVALID_ARGUMENT
 */
export function createKeySecurity(options: KeySecurityOptions): Security {
  return new KeySecurity(options)
}

class KeySecurity implements Security {
  private readonly ring: KeyRing<Entry>
  private readonly entries = new Map<string, Entry>()
  private readonly open: ReadonlySet<string>

  constructor(options: KeySecurityOptions) {
    const reader = new ArgumentReader(options, ['keys', 'open', 'shareCache', 'now'], 'createKeySecurity()')
    const { keys } = options
    if (!Array.isArray(keys) || keys.length === 0) throw invalidArgument('keys', 'an array of at least one key', keys)
    const shareCache = reader.boolean('shareCache') ?? false
    const now = (reader.callback('now') as (() => number) | undefined) ?? (() => performance.now())
    this.open = new Set(checkOpen(reader.get('open')))
    // Nobody who knows the configuration can tell a key's salt, and so none can be given by a client.
    const secret = randomBytes(32)
    const hashes = new Map<string, string>()
    for (const [index, given] of keys.entries()) {
      const key = checkKey(given, `keys[${index}]`)
      const twin = hashes.get(key.sha256)
      if (twin !== undefined) throw new TensorRTError('ERR_INVALID_ARGUMENT', `"keys[${index}]" is the key that "${twin}" is`)
      if (this.entries.has(key.name)) throw new TensorRTError('ERR_INVALID_ARGUMENT', `"keys" has the name "${key.name}" twice`)
      hashes.set(key.sha256, key.name)
      const label = key.cacheSalt === undefined ? (shareCache ? undefined : `key:${key.name}`) : `salt:${key.cacheSalt}`
      const cacheSalt = label === undefined ? undefined : createHmac('sha256', secret).update(label).digest('base64url')
      this.entries.set(key.name, {
        ...key,
        caller: Object.freeze({ keyName: key.name, cacheSalt, limits: key.limits }),
        running: 0,
        rate: key.requestsPerMinute === undefined ? undefined : new RateLimit(key.requestsPerMinute, 60_000, now),
      })
    }
    this.ring = new KeyRing([...this.entries.values()])
  }

  authenticate(request: RequestHead): Caller | { refusal: Refusal } {
    if (this.open.has(request.route)) return {}
    const key = presentedKey(request)
    if (key === undefined) {
      const message = 'An API key is needed: send it in the header "authorization: Bearer <key>", or "x-api-key"'
      return { refusal: { status: 401, code: 'missing_api_key', message } }
    }
    const entry = this.ring.find(key)
    // Not a word of what was sent: an answer may be logged where keys must not be.
    if (entry === undefined) return { refusal: { status: 401, code: 'invalid_api_key', message: 'The API key is not valid' } }
    return entry.caller
  }

  begin({ keyName }: Caller, facts: RequestFacts | TokenizeFacts): { release(): void } | { refusal: Refusal } {
    const entry = this.entries.get(keyName ?? '')
    if (entry === undefined) return { release: () => {} }
    const { models, maxConcurrent = Infinity, rate } = entry
    if (models?.includes(facts.model) === false) {
      return { refusal: { status: 403, code: 'model_not_allowed', message: `This API key may not use the model "${facts.model}"` } }
    }
    if (entry.running >= maxConcurrent) {
      const message = `This API key has ${entry.running} requests under way, and may have ${maxConcurrent}`
      return { refusal: { status: 429, code: 'concurrency_limit_exceeded', message, retryAfterSeconds: 1 } }
    }
    const waitMs = rate?.take() ?? 0
    if (waitMs > 0) {
      const message = `This API key may send ${entry.requestsPerMinute} requests a minute`
      return { refusal: { status: 429, code: 'rate_limit_exceeded', message, retryAfterSeconds: Math.max(1, Math.ceil(waitMs / 1000)) } }
    }
    entry.running++
    let released = false
    return {
      release: () => {
        if (released) return
        released = true
        entry.running--
      },
    }
  }
}

/** undefined where there is none, or two that differ. */
function presentedKey(request: RequestHead): string | undefined {
  const bearer = /^bearer +([\x21-\x7e]+)$/i.exec(request.header('authorization')?.trim() ?? '')?.[1]
  const plain = request.header('x-api-key')?.trim()
  if (bearer !== undefined && plain !== undefined && plain !== '' && bearer !== plain) return undefined
  return bearer ?? (plain === '' ? undefined : plain)
}

/** A route that is none would be closed, and nobody told. */
function checkOpen(given: unknown): readonly string[] {
  if (given === undefined) return OPEN_ROUTES
  if (!Array.isArray(given)) throw invalidArgument('open', 'an array of routes', given)
  for (const route of given as readonly unknown[]) {
    if (typeof route === 'string' && KNOWN_ROUTES.has(route)) continue
    const meant = typeof route === 'string' ? closest(route, [...KNOWN_ROUTES]) : undefined
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"open" has ${describeValue(route)}, which is no route`, {
      hint: meant === undefined ? `there are: ${[...KNOWN_ROUTES].join(', ')}` : `did you mean "${meant}"?`,
    })
  }
  return given as readonly string[]
}

function checkKey(given: unknown, where: string): ApiKey {
  const reader = new ArgumentReader(given, KEY_FIELDS, where)
  const name = reader.string('name', 64)
  if (name === undefined || !NAME.test(name)) throw invalidArgument(`${where}.name`, '1 to 64 letters, digits and . _ @ -', name)
  const sha256 = reader.string('sha256', 64)
  if (sha256 === undefined || !SHA256.test(sha256)) throw invalidArgument(`${where}.sha256`, '64 hexadecimal digits', sha256)
  const models = reader.get('models')
  if (models !== undefined && (!Array.isArray(models) || models.some((model) => typeof model !== 'string'))) {
    throw invalidArgument(`${where}.models`, 'an array of names', models)
  }
  return {
    name,
    sha256: sha256.toLowerCase(),
    limits: checkLimits(reader.get('limits'), `"${where}.limits"`),
    maxConcurrent: reader.integer('maxConcurrent', 1, 1_000_000),
    requestsPerMinute: reader.integer('requestsPerMinute', 1, 1_000_000),
    models: models as readonly string[] | undefined,
    cacheSalt: reader.string('cacheSalt', 256),
  }
}
