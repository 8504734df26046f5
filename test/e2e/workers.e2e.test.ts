import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterAll, describe, expect, it } from 'vitest'

const program = join(__dirname, 'fixtures', 'endless_decode.cjs')

interface Outcome {
  code: number | null
  signal: NodeJS.Signals | null
  stderr: string
}

function runScenario(name: string, limitMs = 70_000): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [program, name], { stdio: ['ignore', 'ignore', 'pipe'] })
    let stderr = ''
    child.stderr.on('data', (text: Buffer) => (stderr += text.toString()))
    const timer = setTimeout(() => {
      stderr += '\n[the test killed it: it hung]'
      child.kill('SIGKILL')
    }, limitMs)
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      resolve({ code, signal, stderr })
    })
  })
}

describe('a process that ends in mid-decode', () => {
  it.each([
    ['process.exit in a callback', 'exit', 7],
    ['process.exit during a prefill', 'exitInPrefill', 8],
    ['process.exit while weights load', 'exitWhileLoading', 9],
    ['process.exit with decoding Workers', 'exitWithWorkers', 4],
    ['nothing left to do, backend not closed', 'idle', 5],
    ['a last step still in flight', 'inFlight', 6],
  ])('%s: exits with the right code', async (_, scenario, code) => {
    for (let round = 0; round < 3; round++) expect(await runScenario(scenario)).toEqual({ code, signal: null, stderr: '' })
  })

  it('an uncaught error: reports it and exits', async () => {
    const { code, signal, stderr } = await runScenario('uncaught')
    expect({ code, signal }).toEqual({ code: 1, signal: null })
    expect(stderr).toContain('of the program')
  })

  it('a signal: ends by it', async () => {
    expect(await runScenario('signal')).toEqual({ code: null, signal: 'SIGTERM', stderr: '' })
  })
})

describe('Workers', () => {
  const workers: Worker[] = []
  afterAll(() => Promise.all(workers.map((worker) => worker.terminate())))

  it('eight of them decode, and go on when one is ended', async () => {
    const steps = new Map<Worker, number>()
    const failures: unknown[] = []
    for (let i = 0; i < 8; i++) {
      const worker = new Worker(program)
      workers.push(worker)
      worker.on('message', () => steps.set(worker, (steps.get(worker) ?? 0) + 1))
      worker.on('error', (error) => failures.push(error))
    }
    await expect.poll(() => workers.filter((worker) => (steps.get(worker) ?? 0) > 10).length, { timeout: 100_000 }).toBe(8)

    const [first, ...others] = workers as [Worker, ...Worker[]]
    expect(await first.terminate()).toBe(1)
    const before = others.map((worker) => steps.get(worker)!)
    await expect.poll(() => others.every((worker, i) => steps.get(worker)! > before[i]! + 10), { timeout: 100_000 }).toBe(true)
    expect(failures).toEqual([])
  })

  it('can be ended at any moment', async () => {
    expect(await runScenario('churn', 200_000)).toEqual({ code: 3, signal: null, stderr: '' })
  })
})
