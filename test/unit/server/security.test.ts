import { createHash } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { KeyRing } from '../../../lib/server/security/api_keys'
import { type ApiKey, createKeySecurity, hashApiKey, type KeySecurityOptions, makeApiKey } from '../../../lib/server/security'
import type { Caller, Refusal, RequestFacts, RequestHead } from '../../../lib/server/seams'
import fc from '../../support/fast_check'
import { requestFacts } from '../../support/request_facts'

const ALICE = 'ntk_alice-0123456789abcdef'
const BOB = 'ntk_bob-0123456789abcdef00'
const key = (name: string, secret: string, more: Partial<ApiKey> = {}): ApiKey => ({ name, sha256: hashApiKey(secret), ...more })
const security = (options: Partial<KeySecurityOptions> = {}) =>
  createKeySecurity({ keys: [key('alice', ALICE), key('bob', BOB)], ...options })

const head = (headers: Record<string, string>, route = '/v1/completions'): RequestHead => ({
  id: 'r1',
  method: 'POST',
  route,
  header: (name) => headers[name],
  signal: new AbortController().signal,
})
const facts = (model = 'm'): RequestFacts => requestFacts({ model, promptTokens: 3, maxTokens: 4, keyName: 'alice' })
type Answer = Caller | { refusal: Refusal }
const ask = (headers: Record<string, string>, options?: Partial<KeySecurityOptions>, route?: string) =>
  security(options).authenticate(head(headers, route)) as Answer

describe('API keys', () => {
  it('are 256 random bits, and no two are the same', () => {
    const keys = new Set(Array.from({ length: 100 }, makeApiKey))
    expect(keys.size).toBe(100)
    for (const one of keys) expect(one).toMatch(/^ntk_[\w-]{43}$/)
  })

  it('are stored as SHA-256', () => {
    expect(hashApiKey(ALICE)).toBe(createHash('sha256').update(ALICE).digest('hex'))
    for (const bad of ['', 'short', 'with a space inside it', 'umlaut-äöü-0123456789', 'x'.repeat(513)]) {
      expect(() => hashApiKey(bad), bad).toThrow('An API key has 16 to 512 printable ASCII characters')
    }
  })

  it('are found whatever their place, and nothing else is', () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.string({ minLength: 1, maxLength: 40 }), { minLength: 1, maxLength: 30 }), fc.string(), (secrets, other) => {
        const ring = new KeyRing(secrets.map((secret) => ({ secret, sha256: createHash('sha256').update(secret).digest('hex') })))
        for (const secret of secrets) expect(ring.find(secret)?.secret).toBe(secret)
        expect(ring.find(other)?.secret).toBe(secrets.includes(other) ? other : undefined)
      }),
    )
  })
})

describe('authentication', () => {
  it.each([
    [{ authorization: `Bearer ${ALICE}` }],
    [{ authorization: `bearer   ${ALICE} ` }],
    [{ 'x-api-key': ALICE }],
    [{ authorization: `Bearer ${ALICE}`, 'x-api-key': ALICE }],
    [{ authorization: 'Basic eDp5', 'x-api-key': ALICE }],
  ])('takes %j', (headers) => expect(ask(headers as Record<string, string>)).toMatchObject({ keyName: 'alice' }))

  it.each([
    ['nothing', {}, 'missing_api_key'],
    ['an empty header', { authorization: '' }, 'missing_api_key'],
    ['a scheme alone', { authorization: 'Bearer ' }, 'missing_api_key'],
    ['another scheme', { authorization: `Basic ${ALICE}` }, 'missing_api_key'],
    ['a key without scheme', { authorization: ALICE }, 'missing_api_key'],
    ['two keys that differ', { authorization: `Bearer ${ALICE}`, 'x-api-key': BOB }, 'missing_api_key'],
    ['two keys in one', { authorization: `Bearer ${ALICE},${BOB}` }, 'invalid_api_key'],
    ['a wrong key', { authorization: 'Bearer wrong' }, 'invalid_api_key'],
    ['a key with more behind it', { authorization: `Bearer ${ALICE}0` }, 'invalid_api_key'],
    ['the beginning of a key', { 'x-api-key': ALICE.slice(0, -1) }, 'invalid_api_key'],
    ['the hash itself', { 'x-api-key': hashApiKey(ALICE) }, 'invalid_api_key'],
    ['letters of another case', { 'x-api-key': ALICE.toUpperCase() }, 'invalid_api_key'],
  ])('refuses %s, and repeats nothing of it', (_, headers, code) => {
    const answer = ask(headers as Record<string, string>)
    expect(answer).toMatchObject({ refusal: { status: 401, code } })
    for (const value of Object.values(headers)) if (value.length > 7) expect(JSON.stringify(answer)).not.toContain(value)
  })

  it('closes every route but those that are opened, by the pattern and nothing like it', () => {
    for (const route of ['/health/live', '/health/ready']) expect(ask({}, {}, route)).toEqual({})
    for (const route of ['other', '/metrics', '/version', '/v1/models', '/health', '/health/live/', '/HEALTH/LIVE', '', '*']) {
      expect(ask({}, {}, route), route).toHaveProperty('refusal')
    }
    expect(ask({}, { open: ['/metrics'] }, '/metrics')).toEqual({})
    expect(ask({}, { open: ['/metrics'] }, '/health/live')).toHaveProperty('refusal')
  })
})

describe('cache salts', () => {
  const salt = (secret: string, options: Partial<KeySecurityOptions> = {}, from = security(options)) =>
    (from.authenticate(head({ 'x-api-key': secret })) as Caller).cacheSalt

  it('differ from key to key, and from process to process', () => {
    const one = security()
    expect(salt(ALICE, {}, one)).toBe(salt(ALICE, {}, one))
    expect(salt(ALICE, {}, one)).not.toBe(salt(BOB, {}, one))
    expect(salt(ALICE)).not.toBe(salt(ALICE))
    expect(salt(ALICE)!.length).toBeGreaterThan(40)
  })

  it('are shared where the configuration says so', () => {
    expect(salt(ALICE, { shareCache: true })).toBeUndefined()
    const team = security({ keys: [key('alice', ALICE, { cacheSalt: 'team' }), key('bob', BOB, { cacheSalt: 'team' })] })
    expect(salt(ALICE, {}, team)).toBe(salt(BOB, {}, team))
    // A salt that is spelt like another key's own is not that one.
    const forged = security({ keys: [key('alice', ALICE, { cacheSalt: 'key:bob' }), key('bob', BOB)] })
    expect(salt(ALICE, {}, forged)).not.toBe(salt(BOB, {}, forged))
  })
})

describe('limits of a key', () => {
  it('are checked as the server’s own are, and go with its caller', () => {
    const limitsOf = (limits: unknown): unknown =>
      (security({ keys: [key('alice', ALICE, { limits: limits as never })] }).authenticate(head({ 'x-api-key': ALICE })) as Caller).limits
    expect(limitsOf({ maxOutputTokens: 5, requestTimeoutMs: Infinity })).toEqual({ maxOutputTokens: 5, requestTimeoutMs: Infinity })
    expect(limitsOf(undefined)).toEqual({})
    for (const wrong of [{ maxOutputToken: 5 }, { maxOutputTokens: '5' }, { maxOutputTokens: 0 }, { maxBodyBytes: Infinity }, null, 7]) {
      expect(() => limitsOf(wrong), JSON.stringify(wrong)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }))
    }
  })

  it('bound what runs at once, and each claim ends once', () => {
    const one = security({ keys: [key('alice', ALICE, { maxConcurrent: 2 }), key('bob', BOB)] })
    const caller = one.authenticate(head({ 'x-api-key': ALICE })) as Caller
    const claims = [one.begin!(caller, facts()), one.begin!(caller, facts())] as { release(): void }[]
    expect(one.begin!(caller, facts())).toMatchObject({ refusal: { status: 429, code: 'concurrency_limit_exceeded', retryAfterSeconds: 1 } })
    // Others are not concerned.
    expect(one.begin!(one.authenticate(head({ 'x-api-key': BOB })) as Caller, facts())).toHaveProperty('release')
    claims[0]!.release()
    claims[0]!.release()
    expect(one.begin!(caller, facts())).toHaveProperty('release')
    expect(one.begin!(caller, facts())).toHaveProperty('refusal')
  })

  it('bound requests a minute, and say when to come again', () => {
    let now = 0
    const one = security({ keys: [key('alice', ALICE, { requestsPerMinute: 3 })], now: () => now })
    const caller = one.authenticate(head({ 'x-api-key': ALICE })) as Caller
    const send = () => one.begin!(caller, facts())
    for (let i = 0; i < 3; i++) expect(send()).toHaveProperty('release')
    expect(send()).toMatchObject({ refusal: { status: 429, code: 'rate_limit_exceeded', retryAfterSeconds: 20 } })
    now += 19_999
    expect(send()).toMatchObject({ refusal: { retryAfterSeconds: 1 } })
    now += 1
    expect(send()).toHaveProperty('release')
    now += 10 * 60_000
    for (let i = 0; i < 3; i++) expect(send()).toHaveProperty('release')
    expect(send()).toHaveProperty('refusal')
  })

  it('bound the models', () => {
    const one = security({ keys: [key('alice', ALICE, { models: ['small'] })] })
    const caller = one.authenticate(head({ 'x-api-key': ALICE })) as Caller
    expect(one.begin!(caller, facts('small'))).toHaveProperty('release')
    expect(one.begin!(caller, facts('large'))).toMatchObject({ refusal: { status: 403, code: 'model_not_allowed' } })
  })
})

describe('options', () => {
  it.each([
    ['no keys', { keys: [] }, '"keys" must be an array of at least one key'],
    ['a name twice', { keys: [key('a', ALICE), key('a', BOB)] }, 'has the name "a" twice'],
    ['a key twice', { keys: [key('a', ALICE), key('b', ALICE)] }, '"keys[1]" is the key that "a" is'],
    ['no hash', { keys: [{ name: 'a', sha256: 'abc' }] }, '"keys[0].sha256" must be 64 hexadecimal digits'],
    ['a key in place of its hash', { keys: [{ name: 'a', sha256: ALICE }] }, '"keys[0].sha256" must be 64 hexadecimal digits'],
    ['a name for a log to stumble over', { keys: [key('a\nb', ALICE)] }, '"keys[0].name" must be'],
    ['an unknown field', { keys: [{ ...key('a', ALICE), maxConcurent: 1 }] }, 'did you mean "maxConcurrent"?'],
    ['an unknown option', { keys: [key('a', ALICE)], opens: [] }, 'did you mean "open"?'],
    ['a route that is none', { keys: [key('a', ALICE)], open: ['/health/live', 'metrics'] }, '"open" has "metrics", which is no route (did you mean "/metrics"?)'],
    ['a path for a pattern', { keys: [key('a', ALICE)], open: ['/v1/models/x/y/z'] }, 'there are: /v1/models, '],
    ['a route alone', { keys: [key('a', ALICE)], open: '/metrics' }, '"open" must be an array of routes'],
  ])('%s is an error', (_, options, message) => {
    expect(() => createKeySecurity(options as KeySecurityOptions)).toThrow(message)
  })
})
