import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { LLM } from '../../../lib/llm'
import { checkLoadOptions } from '../../../lib/llm/validate'
import { DEFAULT_LIMITS, hashApiKey } from '../../../lib/server'
import { checkModelNames } from '../../../lib/server/model_names'
import { type ConfigSources, readServeConfig } from '../../../lib/cli/serve_config'
import { findKeys } from '../../../lib/cli/serve_keys'
import { llmOptions } from '../../../lib/cli/serve_model'
import { environmentName, optionName, SETTING_GROUPS, SETTINGS } from '../../../lib/cli/serve_settings'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-config-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

let files = 0
function file(text: string, name = `config-${files++}.yaml`): string {
  const path = join(folder, name)
  writeFileSync(path, text)
  return path
}
const read = (sources: Partial<ConfigSources>) => readServeConfig({ model: undefined, flags: {}, env: {}, file: undefined, ...sources })
const fromFile = (text: string) => read({ file: file(text) })
function failure(sources: Partial<ConfigSources>): string {
  try {
    read(sources)
  } catch (error) {
    expect(error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    return (error as Error).message
  }
  throw new Error('It was taken')
}

describe('configuration of serve', () => {
  it('has safe defaults', () => {
    expect(read({})).toMatchObject({
      host: '127.0.0.1',
      port: 8000,
      drainMs: 30_000,
      auth: { keys: [], open: ['/health/live', '/health/ready'], shareCache: false },
      metrics: { enabled: true, host: '127.0.0.1' },
    })
  })

  it('takes flags before variables, variables before the file, and the file before defaults', () => {
    const path = file('port: 1\nhost: a.example\nmaxQueue: 5\nlimits: { maxBodyBytes: 1M, maxChoices: 2 }\nprefixCache: false')
    const env = { NODE_TENSORRT_SERVE_PORT: '2', NODE_TENSORRT_SERVE_HOST: 'b.example', NODE_TENSORRT_SERVE_MAX_CHOICES: '' }
    const flags = { port: '3', prefixCache: true }
    expect(read({ file: path, env, flags })).toMatchObject({
      port: 3,
      host: 'b.example',
      maxQueue: 5,
      prefixCache: true,
      drainMs: 30_000,
      limits: { maxBodyBytes: 2 ** 20, maxChoices: 2 },
    })
  })

  it('takes every setting from a flag, a variable and a file alike', () => {
    const texts: Record<string, string> = { string: 'x', path: '/x', strings: 'a,b', names: 'a,b', integers: '64, 128', integer: '7', number: '0.75', bytes: '4k', boolean: 'on' }
    for (const setting of SETTINGS) {
      const { kind, path } = setting
      const text = kind.type === 'choice' ? kind.choices[1]! : texts[kind.type]!
      // Some go together.
      const { [optionName(setting)]: _, ...other } = { tlsCert: '/x', tlsKey: '/x', slaTtft: '9', slaItl: '9' } as Record<string, string>
      const at = (config: object): unknown => path.split('.').reduce<unknown>((value, field) => (value as Record<string, unknown>)[field], config)
      const byFlag = at(read({ flags: { ...other, [optionName(setting)]: text } }))
      const byEnv = at(read({ flags: other, env: { [environmentName(setting)]: text } }))
      const nested = path.split('.').reduceRight<unknown>((value, field) => ({ [field]: value }), byFlag)
      const byFile = at(read({ flags: other, file: file(JSON.stringify(nested), `${files++}.json`) }))
      expect(byFlag, path).toBeDefined()
      expect([byEnv, byFile], path).toEqual([byFlag, byFlag])
    }
  })

  it('knows the limits of the server, all of them', () => {
    const names = SETTINGS.filter(({ path }) => path.startsWith('limits.')).map(({ path }) => path.slice('limits.'.length))
    expect(names.sort()).toEqual(Object.keys(DEFAULT_LIMITS).sort())
    expect(read({ flags: { requestTimeout: 'none' } }).limits).toEqual({ requestTimeoutMs: Infinity })
  })

  it('reads paths of a file from where the file is', () => {
    expect(fromFile('model: ./my-model\nauth: { keyFile: keys.txt }\nweights: /abs')).toMatchObject({
      model: join(folder, 'my-model'),
      auth: { keyFile: join(folder, 'keys.txt') },
      weights: '/abs',
    })
    expect(read({ model: './here', file: file('model: ./there') }).model).toBe('./here')
  })

  it.each([
    ['a wrong type', 'port: "eighty"', '"port" must be an integer from 0 to 65535, not "eighty"'],
    ['a value out of range', 'limits: { maxJsonDepth: 0 }', '"limits.maxJsonDepth" must be an integer from 1 to 1000, not 0'],
    ['bytes that are none', 'limits: { maxBodyBytes: lots }', '"limits.maxBodyBytes" must be bytes, such as 512M or 4GiB, at most 268435456, not "lots"'],
    ['an unknown field', 'ports: 80', '"ports" is no field; did you mean "port"?'],
    ['an unknown field below', 'limits: { maxBodyByte: 5 }', '"limits.maxBodyByte" is no field; did you mean "maxBodyBytes"?'],
    ['a field of no likeness', 'metrics: { zzzzzz: 5 }', '"metrics.zzzzzz" is no field; there are: enabled, port, host'],
    ['a scalar for fields', 'limits: 5', '"limits" must be fields and values, not 5'],
    ['a choice that is none', 'backend: gpu', '"backend" must be auto, cpu, tensorrt, not "gpu"'],
    ['keys that are no list', 'auth: { keys: alice }', '"auth.keys" must be a list of keys, not "alice"'],
    ['a key without a hash', 'auth: { keys: [{ name: alice }] }', '"auth.keys[0].sha256" must be the 64 hexadecimal digits'],
    ['a field of a key', `auth: { keys: [{ name: a, sha256: ${'0'.repeat(64)}, max_concurrent: 1 }] }`, '"auth.keys[0].max_concurrent" is no field; did you mean "maxConcurrent"?'],
    ['half of a service level', 'sla: { ttftMs: 200 }', '"sla.ttftMs" and "sla.itlMs" go together'],
    ['two sizes of the cache', 'kvCacheMemory: 1G\nkvCacheFraction: 0.5', 'Give "kvCacheMemory" or "kvCacheFraction", not both'],
    ['delays that shrink', 'restart: { initialDelayMs: 10, maxDelayMs: 5 }', '"restart.maxDelayMs" must be at least "restart.initialDelayMs" (10), not 5'],
    ['a certificate without its key', 'tls: { cert: a.pem }', '"tls.cert" and "tls.key" go together'],
    ['a list in place of fields', '- port', 'must hold fields and values'],
    ['bad YAML', 'port: [1', 'is no valid YAML'],
    ['a field twice', 'port: 1\nport: 2', 'is no valid YAML'],
    ['a bomb of aliases', `a: &a [x]\n${Array.from({ length: 12 }, (_, i) => `a${i}: &a${i} [${Array(9).fill(`*a${i === 0 ? '' : i - 1}`).join(', ')}]`).join('\n')}`, 'is no'],
  ])('%s in a file is an error that says where and what', (_, text, message) => {
    expect(failure({ file: file(text) })).toContain(message)
  })

  it('tells all that is wrong at once, each by where it came from', () => {
    const message = failure({ file: file('port: x\nkv: 1'), flags: { maxQueue: '0' }, env: { NODE_TENSORRT_SERVE_DRAIN: 'soon' } })
    expect(message.split('\n').length).toBe(5)
    expect(message).toContain('--max-queue must be an integer from 1 to 2147483647, not 0')
    expect(message).toContain('NODE_TENSORRT_SERVE_DRAIN must be an integer from 0 to 2147483647, not "soon"')
    expect(message).toMatch(/config-\d+\.yaml: "port" must be/)
  })

  it('says which file is not there', () => {
    expect(() => read({ file: join(folder, 'none.yaml') })).toThrow(/The configuration .*none\.yaml cannot be read: ENOENT/)
  })
})

it.each([['a'], ['Org/model-7B.v2:latest+lora@1_x'], ['a', 'b'], ['a', 'a'], ['a b'], ['-a'], ['/a'], [''], ['é'], ['a'.repeat(256)], ['a'.repeat(257)], []].map((names) => [names]))(
  'takes the names of a model that the server takes: %j',
  (names) => {
    const taken = (check: () => unknown): boolean => {
      try {
        check()
        return true
      } catch {
        return false
      }
    }
    const byServer = taken(() => checkModelNames({ info: {} } as LLM, names))
    expect(taken(() => fromFile(JSON.stringify({ modelName: names })))).toBe(byServer)
    if (names.length > 0 && names[0] !== '') expect(taken(() => read({ flags: { servedModelName: names.join(',') } }))).toBe(byServer)
  },
)

describe('options of the model', () => {
  const optionsOf = (flags: Record<string, string> = {}) => {
    const options = llmOptions(read({ flags }))
    // As LLM.load() takes them.
    checkLoadOptions(options)
    return options
  }

  it('change with every setting of the model, of scheduling and of failures', () => {
    const groups = SETTING_GROUPS.filter(({ title }) => ['Model:', 'Scheduling:', 'Failures:'].includes(title))
    expect(groups).toHaveLength(3)
    const ofServer = ['modelName', 'toolCallParser', 'reasoningParser']
    for (const setting of groups.flatMap(({ settings }) => settings)) {
      if (ofServer.includes(setting.path)) continue
      const { kind } = setting
      const texts = { choice: kind.type === 'choice' ? kind.choices : [], boolean: ['on', 'off'], integer: ['7'], number: ['0.75'], bytes: ['1G'], path: ['/x'], string: ['x'], strings: ['x'], names: ['x'], integers: ['64', 'any'] }[kind.type]
      const changed = texts.filter((text) => JSON.stringify(optionsOf({ [optionName(setting)]: text })) !== JSON.stringify(optionsOf()))
      expect(changed.length, setting.path).toBeGreaterThan(0)
    }
  })

  it('keep the bounds that admission promises, unless told otherwise', () => {
    const sla = { slaTtft: '500', slaItl: '40.5' }
    expect(optionsOf()).toMatchObject({ maxStepMs: undefined, preemptForPriority: false, agingMs: undefined })
    expect(optionsOf(sla)).toMatchObject({ maxStepMs: 40.5, preemptForPriority: true, agingMs: 600_000 })
    expect(optionsOf({ ...sla, maxStepTime: '20', preemptForPriority: 'off', aging: '1000' })).toMatchObject({
      maxStepMs: 20,
      preemptForPriority: false,
      agingMs: 1000,
    })
  })

  it('bring a dead backend back by default, at the pace that is set, or not at all', () => {
    const restart = (flags: Record<string, string>) => checkLoadOptions(llmOptions(read({ flags }))).restart
    expect(restart({})).toEqual({ initialDelayMs: 1000, maxDelayMs: 60_000, maxAttempts: Infinity })
    expect(restart({ restartMaxDelay: '500', restartAttempts: '3' })).toEqual({ initialDelayMs: 500, maxDelayMs: 500, maxAttempts: 3 })
    expect(restart({ restartDelay: '90000' })).toMatchObject({ initialDelayMs: 90_000, maxDelayMs: 90_000 })
    expect(restart({ restart: 'off', restartAttempts: '3' })).toBeUndefined()
  })
})

describe('keys of serve', () => {
  const keysOf = (config: object, env: Record<string, string> = {}) => findKeys({ ...read({}), auth: { ...read({}).auth, ...config } }, env)
  const secret = 'a-key-that-is-long-enough'
  const sha256 = hashApiKey(secret)

  it('come from the configuration, a file and the environment', () => {
    const keyFile = file(`# who may\n\nalice sha256:${sha256}\n${secret}2\r\nbob   ${secret}3\n`, 'keys.txt')
    chmodSync(keyFile, 0o600)
    const { keys, warnings } = keysOf({ keyFile, keys: [{ name: 'first', sha256: '0'.repeat(64) }] }, { NODE_TENSORRT_API_KEY: `${secret}4` })
    expect(warnings).toEqual([])
    expect(keys).toEqual([
      { name: 'first', sha256: '0'.repeat(64) },
      { name: 'alice', sha256 },
      { name: 'key-2', sha256: hashApiKey(`${secret}2`) },
      { name: 'bob', sha256: hashApiKey(`${secret}3`) },
      { name: 'environment', sha256: hashApiKey(`${secret}4`) },
    ])
  })

  it('in a file that others can read are warned of, unless they are hashes', () => {
    const plain = file(`bob ${secret}\n`, 'plain.txt')
    chmodSync(plain, 0o644)
    expect(keysOf({ keyFile: plain }).warnings).toEqual([expect.stringContaining('others can read it')])
    const hashed = file(`bob sha256:${sha256}\n`, 'hashed.txt')
    chmodSync(hashed, 0o644)
    expect(keysOf({ keyFile: hashed }).warnings).toEqual([])
  })

  it.each([
    ['too short', 'bob short', ':1: An API key has 16 to 512'],
    ['three words', `bob has ${secret}`, ':1 must hold a name and sha256:<hash>'],
    ['a bad name', `b/ob ${secret}`, ':1: a name has 1 to 64'],
    ['nothing', '# none\n', 'holds no API key'],
  ])('%s are an error that does not repeat them', (_, text, message) => {
    const keyFile = file(text, `bad-${files++}.txt`)
    expect(() => keysOf({ keyFile })).toThrow(message)
    expect(() => keysOf({ keyFile })).not.toThrow(secret)
  })
})
