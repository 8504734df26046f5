/** The access log: what is written, and what becomes of it when nothing can be. */
import { execFileSync, spawn } from 'node:child_process'
import { closeSync, constants, existsSync, openSync, readFileSync, readSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { AccessLog } from '../../../../lib/server/telemetry/access_log'
import { root, temporaryFolder } from '../../tensorrt/fixtures'
import { PATIENTLY } from '../../../support/patience'
import { httpFacts } from '../../../support/request_facts'

const folder = temporaryFolder()
let files = 0
const fresh = (): string => join(folder, `access-${files++}.log`)
const open: AccessLog[] = []
afterEach(async () => {
  for (const log of open.splice(0)) await log.close()
})

function logTo(path: string, onWarning: (message: string) => void = () => {}, maxWaiting?: number): AccessLog {
  const log = AccessLog.to({ path }, onWarning, maxWaiting)
  open.push(log)
  return log
}
const lines = (path: string): Record<string, unknown>[] =>
  readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>)

describe('a line', () => {
  it('has the fields that are documented, in their order', async () => {
    const path = fresh()
    const log = logTo(path)
    log.add(
      httpFacts({
        requestId: 'r-1',
        status: 503,
        durationMs: 1.23456,
        keyName: 'team-a',
        errorCode: 'ERR_BACKEND_DEAD',
        aborted: true,
        usage: { promptTokens: 5, completionTokens: 7, cachedTokens: 1 },
      }),
    )
    log.add(httpFacts({ model: undefined }))
    await log.close()
    const [full, plain] = lines(path)
    expect(Object.keys(full!)).toEqual([
      'time',
      'request_id',
      'method',
      'route',
      'status',
      'duration_ms',
      'response_bytes',
      'backend',
      'model',
      'key',
      'error',
      'aborted',
      'prompt_tokens',
      'completion_tokens',
      'cached_tokens',
    ])
    expect(full).toMatchObject({ request_id: 'r-1', status: 503, duration_ms: 1.235, key: 'team-a', error: 'ERR_BACKEND_DEAD', aborted: true, cached_tokens: 1 })
    expect(new Date(full!['time'] as string).toISOString()).toBe(full!['time'])
    expect(Object.keys(plain!)).toEqual(['time', 'request_id', 'method', 'route', 'status', 'duration_ms', 'response_bytes', 'backend'])
  })

  it('stays one line and short, whatever a client sends', async () => {
    const path = fresh()
    const log = logTo(path)
    log.add(httpFacts({ requestId: 'a\nb"\u2028\u0000}', route: 'x'.repeat(100_000), method: '\r\n{"forged":true}' }))
    await log.close()
    expect(lines(path)).toHaveLength(1)
    expect(statSync(path).size).toBeLessThan(1000)
    expect(lines(path)[0]).toMatchObject({ request_id: 'a\nb"\u2028\u0000}', method: '\r\n{"forged":true}' })
  })
})

describe('a file', () => {
  it('is appended to, readable by its owner and group alone, with each line once and in order', async () => {
    const path = fresh()
    for (let round = 0; round < 2; round++) {
      const log = logTo(path)
      for (let i = 0; i < 5000; i++) log.add(httpFacts({ requestId: `${round}-${i}` }))
      await log.close()
      expect(log).toMatchObject({ lines: 5000, dropped: 0 })
    }
    expect(lines(path).map((line) => line['request_id'])).toEqual([0, 1].flatMap((round) => Array.from({ length: 5000 }, (_, i) => `${round}-${i}`)))
    expect(statSync(path).mode & 0o007).toBe(0)
  })

  it('is opened anew after a rotation: no line is lost', async () => {
    const path = fresh()
    const log = logTo(path)
    const rotated: string[] = []
    for (let i = 0; i < 20; i++) {
      for (let j = 0; j < 50; j++) log.add(httpFacts({ requestId: `${i * 50 + j}` }))
      if (i % 5 !== 4) continue
      await vi.waitFor(() => expect(existsSync(path)).toBe(true), PATIENTLY)
      const name = `${path}.${i}`
      renameSync(path, name)
      rotated.push(name)
      await log.reopen()
    }
    await log.close()
    const all = [...rotated, path].flatMap((file) => lines(file)).map((line) => Number(line['request_id']))
    expect(all).toEqual(Array.from({ length: 1000 }, (_, i) => i))
    expect(rotated).toHaveLength(4)
  })

  it('is opened anew for each call, also while it is being opened', async () => {
    const path = fresh()
    const log = logTo(path)
    for (let i = 0; i < 30; i++) {
      log.add(httpFacts({ requestId: `${i}` }))
      const under = log.reopen()
      if (existsSync(path)) renameSync(path, `${path}.${i}`)
      await Promise.all([under, log.reopen()])
      expect(existsSync(path), String(i)).toBe(true)
    }
    await log.close()
    expect(log).toMatchObject({ lines: 30, dropped: 0 })
  })

  it('is opened anew on SIGHUP, which no longer ends the process', async () => {
    const path = fresh()
    const script = `
      const { AccessLog } = require(${JSON.stringify(join(root, 'lib/server/telemetry/access_log.ts'))})
      const log = AccessLog.to({ path: ${JSON.stringify(path)} }, console.error)
      const facts = (requestId) => (${JSON.stringify(httpFacts())}, { ...${JSON.stringify(httpFacts())}, requestId })
      log.add(facts('before'))
      const timer = setInterval(() => {}, 1000)
      process.on('message', async (message) => {
        if (message === 'end') { clearInterval(timer); await log.close(); process.disconnect() }
        else { log.add(facts(message)); await new Promise((resolve) => setTimeout(resolve, 50)); process.send(log.lines) }
      })
      process.send('ready')`
    const child = spawn(process.execPath, ['--require', 'tsx/cjs', '-e', script], { cwd: root, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    const next = (): Promise<unknown> => new Promise((resolve) => child.once('message', resolve))
    await next()
    await vi.waitFor(() => expect(existsSync(path) && lines(path).length).toBe(1), PATIENTLY)
    renameSync(path, `${path}.1`)
    child.kill('SIGHUP')
    await vi.waitFor(() => expect(existsSync(path)).toBe(true), PATIENTLY)
    child.send('after')
    await next()
    const exit = new Promise((resolve) => child.once('exit', (code, signal) => resolve([code, signal])))
    child.send('end')
    expect(await exit).toEqual([0, null])
    expect(lines(`${path}.1`).map((line) => line['request_id'])).toEqual(['before'])
    expect(lines(path).map((line) => line['request_id'])).toEqual(['after'])
  })

  it('that cannot be opened is warned of once, and lines are counted as dropped', async () => {
    const warnings: string[] = []
    const log = logTo(join(folder, 'nowhere', 'access.log'), (message) => warnings.push(message), 1000)
    for (let i = 0; i < 100; i++) log.add(httpFacts())
    await log.reopen()
    await log.close()
    log.add(httpFacts())
    expect(log).toMatchObject({ lines: 0, dropped: 101 })
    expect(warnings).toEqual([expect.stringMatching(/could not be opened: ENOENT/)])
  })

  it('that is open is kept where it cannot be opened anew', async () => {
    const path = fresh()
    const warnings: string[] = []
    const log = logTo(path, (message) => warnings.push(message))
    await log.reopen()
    execFileSync('mkdir', [`${path}.d`])
    renameSync(path, `${path}.1`)
    execFileSync('mkdir', [path])
    await log.reopen()
    log.add(httpFacts({ requestId: 'kept' }))
    await log.close()
    expect(lines(`${path}.1`).map((line) => line['request_id'])).toEqual(['kept'])
    expect(warnings).toEqual([expect.stringMatching(/EISDIR/)])
  })

  it.skipIf(!existsSync('/dev/full'))('on a full disk costs lines, not the server', async () => {
    const warnings: string[] = []
    const log = logTo('/dev/full', (message) => warnings.push(message))
    for (let i = 0; i < 50; i++) log.add(httpFacts())
    await log.close()
    expect(log).toMatchObject({ lines: 0, dropped: 50 })
    expect(warnings).toEqual([expect.stringMatching(/could not be written: ENOSPC/)])
  })
})

describe('a reader that does not keep up', () => {
  it('costs lines beyond the bound, which are counted, and the log goes on when it reads again', async () => {
    const path = fresh()
    execFileSync('mkfifo', [path])
    const reader = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
    try {
      const log = logTo(path, () => {}, 20_000)
      await log.reopen()
      // Whatever waited for the pipe would wait for ever: it is read below.
      for (let i = 0; i < 20_000; i++) log.add(httpFacts({ requestId: `${i}` }))
      expect(log.dropped).toBeGreaterThan(10_000)
      let text = ''
      const buffer = Buffer.alloc(1 << 16)
      const drain = (): void => {
        try {
          for (;;) text += buffer.toString('utf8', 0, readSync(reader, buffer))
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
        }
      }
      await vi.waitFor(() => {
        drain()
        expect(log.lines + log.dropped).toBe(20_000)
      }, PATIENTLY)
      log.add(httpFacts({ requestId: 'last' }))
      await vi.waitFor(() => expect(log.lines + log.dropped).toBe(20_001), PATIENTLY)
      drain()
      const got = text.split('\n').filter((line) => line !== '')
      expect(got).toHaveLength(log.lines)
      expect(got.map((line) => (JSON.parse(line) as { request_id: string }).request_id).at(-1)).toBe('last')
    } finally {
      for (const log of open.splice(0)) await log.close()
      closeSync(reader)
    }
  })
})

describe('stdout', () => {
  // Compiled beforehand: a loader of TypeScript touches process.stdout, whose pipe does not block from then on.
  const compiled = join(folder, 'access_log.cjs')
  beforeAll(() => {
    const source = readFileSync(join(root, 'lib/server/telemetry/access_log.ts'), 'utf8')
    writeFileSync(compiled, ts.transpileModule(source, { compilerOptions: { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022 } }).outputText)
  })
  const writes = (lines: number): string => `
    const { AccessLog } = require(${JSON.stringify(compiled)})
    const log = AccessLog.to('stdout', (message) => console.error('warned', message))
    const facts = ${JSON.stringify(httpFacts())}
    for (let i = 0; i < ${lines}; i++) log.add({ ...facts, requestId: String(i) })
    log.close().then(() => console.error('counted', log.lines + log.dropped))`
  const run = (script: string, reader: string, errors: string): string => {
    const quoted = `'${script.replaceAll("'", `'\\''`)}'`
    return execFileSync('bash', ['-c', `('${process.execPath}' -e ${quoted}; echo "exit $?" >&2) 2>'${errors}' | ${reader}`], { cwd: root, encoding: 'utf8' })
  }

  it('gets lines by the file descriptor, and a reader that leaves ends nothing', () => {
    const errors = fresh()
    const out = run(writes(20_000), 'head -n 3', errors)
    expect(out.trim().split('\n').map((line) => (JSON.parse(line) as { request_id: string }).request_id)).toEqual(['0', '1', '2'])
    expect(readFileSync(errors, 'utf8')).toMatch(/counted 20000\nexit 0/)
  })

  it('does not keep the process from ending where its reader stands still', () => {
    const errors = fresh()
    // Ends when the process has ended, and would wait for half a minute otherwise.
    run(writes(5000), `(for i in $(seq 300); do sleep 0.1; if grep -q exit '${errors}'; then exit; fi; done; echo late >> '${errors}')`, errors)
    expect(readFileSync(errors, 'utf8')).toMatch(/^counted 5000\nexit 0\n$/)
  })
})
