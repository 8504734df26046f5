/** Requests that no decent client sends, by the thousand: each is made from the seed and its number alone. */
import { seededRandom } from '../../../lib/llm/statistics'
import type { RawRequest } from './raw_connection'

export interface HostileRequest extends RawRequest {
  /** Kind, for the report. */
  kind: string
  /** Statuses that are right; a connection that ends without an answer is right where `mayClose` says so. */
  statuses: ReadonlySet<number>
  mayClose: boolean
  /** What a right request must be answered with. */
  check?: (body: string) => boolean
}

export interface HostileOptions {
  seed: number
  /** A valid API key; requests without one must be refused. undefined: the server asks for none. */
  apiKey: string | undefined
}

/** A client's fault, whichever it is taken for. */
const REFUSED = new Set([400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 422, 429, 431])
const UNAUTHORIZED = new Set([401])
const ANSWERED = new Set([200, ...REFUSED])
const OK = new Set([200])

const ROUTES = ['/v1/models', '/v1/completions', '/v1/chat/completions', '/v1/embeddings', '/tokenize', '/detokenize', '/health', '/version', '/metrics', '/health/live', '/health/ready']
const WORK = ['/v1/completions', '/v1/chat/completions', '/v1/embeddings', '/tokenize', '/detokenize']

export class HostileGenerator {
  private readonly auth: string

  constructor(private readonly options: HostileOptions) {
    this.auth = options.apiKey === undefined ? '' : `authorization: Bearer ${options.apiKey}\r\n`
  }

  make(index: number): HostileRequest {
    const random = seededRandom((this.options.seed * 0x9e3779b1 + index) >>> 0)
    const dice = new Dice(random)
    const roll = random()
    if (roll < 0.02) return this.decent(dice)
    if (roll < 0.14) return this.brokenHttp(dice)
    if (roll < 0.28) return this.oddPath(dice)
    if (roll < 0.36) return this.withoutKey(dice)
    if (roll < 0.5) return this.brokenJson(dice)
    if (roll < 0.9) return this.wrongField(dice)
    if (roll < 0.94) return this.oddHeaders(dice)
    if (roll < 0.97) return this.slow(dice)
    return this.leaver(dice)
  }

  /** A request in between that must be answered, as if nothing were. */
  private decent(dice: Dice): HostileRequest {
    const path = dice.of(['/v1/completions', '/v1/chat/completions'])
    const input = path === '/v1/completions' ? { prompt: 'Once upon a' } : { messages: [{ role: 'user', content: 'What is 7 plus 5?' }] }
    const body = { ...input, max_tokens: 3, temperature: 0, stream: dice.chance(0.5) }
    const expected = path === '/v1/completions' ? 'time' : 'plus'
    return { kind: 'decent', ...this.post(path, JSON.stringify(body)), statuses: OK, mayClose: false, check: (text) => text.includes(expected) }
  }

  private brokenHttp(dice: Dice): HostileRequest {
    const { auth } = this
    const body = '{"prompt":"x","max_tokens":1}'
    const start = `POST /v1/completions HTTP/1.1\r\nhost: x\r\n${auth}content-type: application/json\r\n`
    const parts = dice.of<string>([
      'GET\r\n\r\n',
      'GARBAGE\r\n\r\n',
      '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
      'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
      'GET / HTTP/9.9\r\nhost: x\r\n\r\n',
      'GET / HTTP/1.1\r\n\r\n',
      'GET / HTTP/1.1\nhost: x\n\n',
      'GET  /  HTTP/1.1\r\nhost: x\r\n\r\n',
      'GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n',
      'BREW /v1/models HTTP/1.1\r\nhost: x\r\n\r\n',
      `GET / HTTP/1.1\r\nhost: x\r\nno colon here\r\n\r\n`,
      `GET / HTTP/1.1\r\nhost: x\r\nbad\x01name: 1\r\n\r\n`,
      `GET / HTTP/1.1\r\nhost: x\r\nvalue: a\0b\r\n\r\n`,
      `GET / HTTP/1.1\r\nhost: x\r\n folded: 1\r\n\r\n`,
      `GET / HTTP/1.1\r\nhost: x\r\nlong: ${'x'.repeat(dice.integer(17_000, 40_000))}\r\n\r\n`,
      `GET / HTTP/1.1\r\nhost: x\r\n${'a: b\r\n'.repeat(dice.integer(2500, 6000))}\r\n`,
      `GET /${'a'.repeat(dice.integer(17_000, 30_000))} HTTP/1.1\r\nhost: x\r\n\r\n`,
      `GET / HTTP/1.1\r\nhost: ${dice.of(['a b', '[', '', 'x:99999', '\xff', 'a,b', '../x'])}\r\n\r\n`,
      `${start}content-length: ${dice.of(['-1', 'abc', '1e3', '0x10', '9'.repeat(30), '5, 6', ''])}\r\n\r\n${body}`,
      `${start}content-length: 5\r\ncontent-length: 6\r\n\r\n${body}`,
      `${start}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`,
      `${start}transfer-encoding: ${dice.of(['gzip', 'chunked, chunked', 'xchunked', 'identity'])}\r\n\r\n${body}`,
      `${start}transfer-encoding: chunked\r\n\r\n${dice.of(['zz', '-1', 'ffffffffffffffffff', ' ', '5;ext=\0', '1\r\nxx'])}\r\n${body}\r\n0\r\n\r\n`,
      `${start}expect: 200-maybe\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
      `CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n`,
      `GET /v1/models HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n`,
      `TRACE / HTTP/1.1\r\nhost: x\r\n\r\n`,
      `OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n`,
    ])
    // A request that is cut short would be waited for: its end is said.
    return { kind: 'broken HTTP', parts: [Buffer.from(parts, 'latin1')], statuses: REFUSED, mayClose: true, leaveAfter: dice.chance(0.2) ? 0 : 12 }
  }

  private oddPath(dice: Dice): HostileRequest {
    const route = dice.of(ROUTES)
    const odd = dice.of([
      () => `/${route}`,
      () => `${route}/`,
      () => `${route}//`,
      () => route.replaceAll('/', '//'),
      () => route.toUpperCase(),
      () => route.replace('/v1', '/v1/../v1'),
      () => `/health/live/..${route}`,
      () => `/health/live%2f..${route}`,
      () => `/health/live/%2e%2e${route}`,
      () => route.replaceAll('/', '%2f'),
      () => `/%76%31${route.slice(3)}`,
      () => `${route}%00`,
      () => `${route};x=1`,
      () => `${route}?${'a=b&'.repeat(dice.integer(1, 200))}`,
      () => `${route}#x`,
      () => `/.${route}`,
      () => `http://other.example${route}`,
      () => `${route}/${encodeURIComponent(dice.text(40).toWellFormed())}`,
      () => `/${encodeURIComponent(dice.text(200).toWellFormed())}`,
      () => `/v1/models/${'a/'.repeat(dice.integer(1, 2000))}`,
      () => `${route}%`,
      () => `${route}%zz`,
      () => `/__proto__`,
      () => `/v1/models/__proto__`,
      () => `/etc/passwd`,
    ])()
    const method = dice.of(['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'HEAD'])
    const keyed = dice.chance(0.5)
    const override = dice.chance(0.2) ? 'x-http-method-override: GET\r\n' : ''
    const body = method === 'GET' || method === 'HEAD' ? '' : '{}'
    const head = `${method} ${odd} HTTP/1.1\r\nhost: x\r\n${keyed ? this.auth : ''}${override}content-length: ${body.length}\r\n\r\n${body}`
    // Without a key nothing but the open routes answers, in whatever way they are spelt.
    const open = URL.canParse(odd, 'http://x') && /^\/health\/(?:live|ready)\/?$/.test(new URL(odd, 'http://x').pathname)
    const statuses = keyed || this.options.apiKey === undefined || open ? ANSWERED : REFUSED
    // What does not begin with a slash is refused by Node's parser.
    return { kind: odd.startsWith('/') ? 'odd path' : 'broken HTTP', parts: [Buffer.from(head, 'latin1')], head: method === 'HEAD', statuses, mayClose: false }
  }

  private withoutKey(dice: Dice): HostileRequest {
    const route = dice.of(ROUTES.filter((path) => !path.startsWith('/health/')))
    const post = WORK.includes(route)
    const header = dice.of([
      '',
      'authorization: Bearer\r\n',
      'authorization: Bearer wrong\r\n',
      `authorization: Bearer ${'x'.repeat(dice.integer(1, 4000))}\r\n`,
      'authorization: Basic dXNlcjpwYXNz\r\n',
      'x-api-key: null\r\n',
      'x-api-key: undefined\r\n',
      `x-api-key: ${dice.ascii(60)}\r\n`,
      'authorization: Bearer a\r\nx-api-key: b\r\n',
      `cookie: ${dice.ascii(100)}\r\n`,
      `proxy-authorization: ${dice.ascii(30)}\r\n`,
    ])
    const body = post ? '{"prompt":"x","max_tokens":1}' : ''
    const head = `${post ? 'POST' : 'GET'} ${route} HTTP/1.1\r\nhost: x\r\n${header}content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
    return { kind: 'no key', parts: [head], statuses: this.options.apiKey === undefined ? ANSWERED : UNAUTHORIZED, mayClose: false }
  }

  private brokenJson(dice: Dice): HostileRequest {
    const body = dice.of<() => string | Buffer>([
      () => '',
      () => ' ',
      () => '{',
      () => 'null',
      () => '[]',
      () => '"text"',
      () => '{"prompt":"x",}',
      () => "{'prompt':'x'}",
      () => '{"prompt":"x"}{"prompt":"y"}',
      () => '{"prompt": NaN}',
      () => `${'['.repeat(dice.integer(100, 10_000))}`,
      () => `${'{"a":'.repeat(10_000)}1${'}'.repeat(10_000)}`,
      () => `{"prompt":"x","response_format":${'['.repeat(10_000)}${']'.repeat(10_000)}}`,
      () => `{"prompt":"${'\\'.repeat(dice.integer(0, 49) * 2 + 1)}"}`,
      () => Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d]),
      () => Buffer.from(`\uFEFF{"prompt":7}`, 'utf16le'),
      () => `{"prompt":"${'\0'}"}`,
      () => JSON.stringify([dice.json(4)]),
      () => dice.text(dice.integer(1, 3000)),
      () => `prompt=x&max_tokens=1`,
    ])()
    return { kind: 'broken JSON', ...this.post(dice.of(WORK), body), statuses: REFUSED, mayClose: false }
  }

  /** A request that is right but for one thing, or two. */
  private wrongField(dice: Dice): HostileRequest {
    const path = dice.of(WORK)
    const body: Record<string, unknown> = { ...this.base(path), max_tokens: 1, temperature: 0 }
    for (let i = dice.integer(1, 2); i > 0; i--) {
      const [name, values] = dice.of(FIELDS)
      body[name] = dice.chance(0.25) ? dice.json(3) : dice.of(values)(dice)
    }
    // __proto__ as a field of the text, which an object literal cannot have.
    let text = JSON.stringify(body) ?? '{}'
    if (dice.chance(0.1)) text = text.replace(/^\{/, `{${dice.of(['"__proto__":{"n":1000},', '"constructor":{"prototype":{"n":7}},', '"__proto__":null,', '"toString":1,', '"hasOwnProperty":1,'])}`)
    // Some of these are right after all, or harmless.
    return { kind: `field`, ...this.post(path, text), statuses: ANSWERED, mayClose: false }
  }

  private oddHeaders(dice: Dice): HostileRequest {
    const header = dice.of([
      'content-type: text/plain',
      'content-type: application/x-www-form-urlencoded',
      'content-type: application/json; charset=utf-7',
      'content-type: multipart/form-data; boundary=x',
      'content-encoding: gzip',
      'content-encoding: br, gzip',
      `x-request-id: ${dice.ascii(300)}`,
      `traceparent: ${dice.of(['00-0-0-0', 'zz', `00-${'0'.repeat(32)}-${'0'.repeat(16)}-01`, dice.ascii(80)])}`,
      `tracestate: ${dice.ascii(600)}`,
      `x-request-priority: ${dice.of(['-9999', 'NaN', '1e99', 'high', dice.ascii(10)])}`,
      `accept: ${dice.ascii(50)}`,
      `range: bytes=0-1`,
      `if-none-match: *`,
      `x-forwarded-for: ${dice.ascii(100)}`,
      `x-http-method-override: DELETE`,
    ])
    const text = JSON.stringify({ prompt: 'x', max_tokens: 1 })
    return { kind: 'odd header', ...this.post('/v1/completions', text, header), statuses: ANSWERED, mayClose: false }
  }

  /** A right request in small pieces. */
  private slow(dice: Dice): HostileRequest {
    const text = JSON.stringify({ prompt: dice.ascii(20), max_tokens: 1 })
    const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\n${this.auth}content-type: application/json\r\n`
    if (dice.chance(0.5)) {
      const chunks = Array.from(text, (char) => `1\r\n${char}\r\n`)
      return { kind: 'one-byte chunks', parts: [`${head}transfer-encoding: chunked\r\n\r\n`, ...chunks, '0\r\n\r\n'], slowly: true, statuses: ANSWERED, mayClose: false }
    }
    const all = `${head}content-length: ${text.length}\r\n\r\n${text}`
    return { kind: 'one-byte packets', parts: Array.from(all.slice(0, 80)).concat(all.slice(80)), slowly: true, statuses: ANSWERED, mayClose: false }
  }

  /** A client that goes away, before or in the middle of its answer. */
  private leaver(dice: Dice): HostileRequest {
    const stream = dice.chance(0.8)
    const text = JSON.stringify({ prompt: 'Once upon a time', max_tokens: dice.integer(1, 40), ignore_eos: true, stream })
    const request = this.post('/v1/completions', text)
    if (dice.chance(0.3)) {
      const whole = Buffer.from(request.parts[0] as string)
      return { kind: 'cut short', parts: [whole.subarray(0, dice.integer(1, whole.length - 1))], leaveAfter: 0, statuses: ANSWERED, mayClose: true }
    }
    return { kind: 'leaver', ...request, leaveAfter: dice.of([0, 1, 300, 1000]), statuses: OK, mayClose: true }
  }

  private base(path: string): Record<string, unknown> {
    switch (path) {
      case '/v1/chat/completions':
        return { messages: [{ role: 'user', content: 'Hi' }] }
      case '/v1/embeddings':
        return { input: 'Hi' }
      case '/detokenize':
        return { tokens: [1, 2] }
      default:
        return { prompt: 'Hi' }
    }
  }

  private post(path: string, body: string | Buffer, header = 'content-type: application/json'): RawRequest {
    const bytes = Buffer.from(body as string)
    const type = header.startsWith('content-type') ? '' : 'content-type: application/json\r\n'
    const head = `POST ${path} HTTP/1.1\r\nhost: x\r\n${this.auth}${type}${header}\r\ncontent-length: ${bytes.length}\r\n\r\n`
    return { parts: [Buffer.concat([Buffer.from(head, 'latin1'), bytes])] }
  }
}

type Value = (dice: Dice) => unknown

const NUMBERS: Value[] = [() => -1, () => 1e308, () => 1.5, () => 2 ** 53, () => -(2 ** 40), () => '1', () => null, () => true, () => [], () => 0]
const HUGE_SCHEMA = (dice: Dice): unknown =>
  Object.fromEntries(Array.from({ length: dice.integer(50, 400) }, (_, i) => [`p${i}`, { type: 'object', properties: { [`q${i}`]: { type: 'string' } } }]))
const recursive = { type: 'object', properties: { next: { $ref: '#' } }, required: ['next'] }
const loop = { $defs: { a: { $ref: '#/$defs/b' }, b: { $ref: '#/$defs/a' } }, $ref: '#/$defs/a' }
const SCHEMAS: Value[] = [
  () => recursive,
  () => loop,
  () => ({ $ref: '#/nowhere' }),
  () => ({ $ref: 'http://other.example/schema.json' }),
  () => ({ $ref: 'file:///etc/passwd' }),
  () => ({ type: 'string', pattern: '(a+)+b' }),
  () => ({ type: 'string', pattern: '(' }),
  () => ({ type: 'string', pattern: `(${'a|'.repeat(500)}b){1,9999}` }),
  () => ({ type: 'array', minItems: 1e9, items: { type: 'integer' } }),
  () => ({ type: 'integer', minimum: 5, maximum: 1 }),
  () => ({ enum: [] }),
  () => ({ enum: Array.from({ length: 5000 }, (_, i) => `value ${i}`) }),
  () => ({ allOf: [{ type: 'string' }, { type: 'number' }] }),
  () => false,
  () => 7,
  (dice) => ({ type: 'object', properties: HUGE_SCHEMA(dice) }),
  (dice) => dice.json(4),
]
const REGEXES: Value[] = [() => '(a+)+b', () => '(', () => '['.repeat(500), () => '(?=a)b', () => '\\1', () => 'a{1,100000}', () => `${'(a|'.repeat(200)}b${')'.repeat(200)}`, (dice) => dice.text(50), () => '', () => 7]

const FIELDS: readonly (readonly [string, Value[]])[] = [
  ['n', [...NUMBERS, () => 1025, () => 129]],
  ['best_of', NUMBERS],
  ['max_tokens', [...NUMBERS, () => 1e7]],
  ['max_completion_tokens', NUMBERS],
  ['min_tokens', [...NUMBERS, () => 1e6]],
  ['temperature', [...NUMBERS, () => 101, () => 'hot']],
  ['top_p', [...NUMBERS, () => 1.01]],
  ['top_k', NUMBERS],
  ['min_p', NUMBERS],
  ['presence_penalty', [...NUMBERS, () => 3]],
  ['frequency_penalty', NUMBERS],
  ['repetition_penalty', NUMBERS],
  ['seed', NUMBERS],
  ['logprobs', [...NUMBERS, () => 257]],
  ['top_logprobs', NUMBERS],
  ['prompt_logprobs', NUMBERS],
  ['priority', [...NUMBERS, () => -1001]],
  ['stream', [() => 'true', () => 1, () => true]],
  ['stream_options', [() => ({ include_usage: true }), () => 7, () => ({ include_usage: 'x' })]],
  ['stop', [() => '', () => [''], () => Array(65).fill('x'), () => ['x'.repeat(5000)], () => [7], () => ({}), (dice) => dice.text(10)]],
  ['stop_token_ids', [() => [-1], () => [1e9], () => Array(2000).fill(1), () => ['1'], () => [1.5]]],
  ['logit_bias', [() => ({ 'x': 1 }), () => ({ '1': 101 }), () => ({ '-1': 1 }), () => ({ '99999999': 1 }), () => Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [i, 1])), () => [1]]],
  ['echo', [() => true, () => 'yes']],
  ['model', [() => 'none', () => '__proto__', () => 'x'.repeat(10_000), () => '../../etc/passwd', () => 7, (dice) => dice.text(50)]],
  ['cache_salt', [() => '', () => 'x'.repeat(2000), () => 7, (dice) => dice.text(30)]],
  ['user', [(dice) => dice.text(3000), () => 7]],
  ['prompt', [() => '', () => [], () => [''], () => [[]], () => [-1], () => [1e9], () => [[1], 'x'], () => Array(200).fill('x'), () => [[[1]]], () => 'x'.repeat(100_000), () => Array(5000).fill(1), (dice) => dice.text(500), () => '\ud800', () => '<|end|>'.repeat(50)]],
  ['messages', [
    () => [],
    () => [{}],
    () => [{ role: 'user' }],
    () => [{ role: 'god', content: 'x' }],
    () => [{ role: '', content: 'x' }],
    () => [{ role: 'user', content: 7 }],
    () => [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'http://169.254.0.1/' } }] }],
    () => [{ role: 'user', content: [{ type: 'text', text: '{{ 7 * 7 }}{% for a in range(99999999) %}' }] }],
    () => Array.from({ length: 600 }, () => ({ role: 'user', content: 'x' })),
    () => [{ role: 'tool', content: 'x' }],
    () => [{ role: 'assistant', tool_calls: [{ id: 'a', function: { name: 'f', arguments: '{' } }] }],
    () => [{ role: 'user', content: '\u0000\ud800<|end|><|user|>' }],
    (dice) => [{ role: 'user', content: dice.text(800) }],
    (dice) => [{ role: 'system', content: 'x', name: dice.text(20), __proto__: 1 }],
  ]],
  ['tools', [() => [], () => [{}], () => [{ type: 'function', function: { name: 'a b' } }], () => [{ type: 'function', function: { name: 'f', parameters: recursive } }], () => Array.from({ length: 300 }, () => ({ type: 'function', function: { name: 'f' } })), () => 7]],
  ['tool_choice', [() => 'required', () => 'x', () => ({ type: 'function', function: { name: 'nope' } }), () => 7]],
  ['response_format', [() => ({}), () => ({ type: 'x' }), () => ({ type: 'json_object' }), (dice) => ({ type: 'json_schema', json_schema: { name: 'x', schema: dice.of(SCHEMAS)(dice) } }), () => 7]],
  ['guided_json', SCHEMAS],
  ['guided_regex', REGEXES],
  ['guided_choice', [() => [], () => [''], () => [7], () => Array.from({ length: 3000 }, (_, i) => `c${i}`), () => 'x']],
  ['guided_grammar', [() => 'root ::= root', () => 'root ::= "a" root | ', () => 'x', () => 'root ::= undefined_rule', () => `root ::= ${'"a" '.repeat(2000)}`, (dice) => dice.text(100), () => 7]],
  ['structured_outputs', [(dice) => ({ regex: dice.of(REGEXES)(dice) }), (dice) => ({ json: dice.of(SCHEMAS)(dice) }), () => ({}), () => ({ regex: 'a', json: {} }), () => 7]],
  ['chat_template', [() => '{% for a in range(99999999) %}{% endfor %}', () => '{{ 7 * 7 }}']],
  ['chat_template_kwargs', [() => ({ range: 1 }), () => ({ messages: [] }), () => ({ __proto__: { x: 1 } }), () => 7]],
  ['documents', [() => [7], () => [{}]]],
  ['input', [() => '', () => [], () => Array(3000).fill('x'), () => [[1e9]], () => 7, () => 'x'.repeat(50_000)]],
  ['encoding_format', [() => 'x', () => 'base64', () => 7]],
  ['dimensions', NUMBERS],
  ['tokens', [() => [], () => [-1], () => [1e12], () => ['a'], () => Array(20_000).fill(1), () => 'x']],
  ['add_special_tokens', [() => 'x', () => false]],
  ['use_beam_search', [() => true]],
  ['logits_processors', [() => ['os.system']]],
]

/** Random choices of one request. */
class Dice {
  constructor(private readonly random: () => number) {}

  chance(share: number): boolean {
    return this.random() < share
  }

  integer(min: number, max: number): number {
    return min + Math.floor(this.random() * (max - min + 1))
  }

  of<T>(values: readonly T[]): T {
    return values[Math.floor(this.random() * values.length)]!
  }

  ascii(length: number): string {
    return Array.from({ length }, () => String.fromCharCode(this.integer(33, 126))).join('')
  }

  /** Of all planes, with control characters, lone surrogates and direction marks. */
  text(length: number): string {
    const ranges = [[0, 127], [0, 31], [0x80, 0x7ff], [0xd800, 0xdfff], [0x200b, 0x202f], [0x4e00, 0x9fff], [0xfff0, 0xffff]] as const
    return Array.from({ length }, () => {
      const [from, to] = this.of(ranges)
      return String.fromCharCode(this.integer(from, to))
    }).join('')
  }

  json(depth: number): unknown {
    if (depth === 0 || this.chance(0.4)) return this.of<() => unknown>([() => null, () => true, () => this.integer(-5, 5), () => 1e300, () => '', () => this.text(8), () => 0.1])()
    const length = this.integer(0, 4)
    if (this.chance(0.5)) return Array.from({ length }, () => this.json(depth - 1))
    return Object.fromEntries(Array.from({ length }, () => [this.of(['type', 'prompt', 'role', 'content', '', 'a', 'length']), this.json(depth - 1)]))
  }
}
