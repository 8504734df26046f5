/** `bench serve` as its users meet it: a process of its own, against a real server and against one that hangs. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer as createHttpServer, type Server as HttpServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { ServeLoadReport } from '../../lib/cli/bench_serve_load'
import { type Fixture, startServer } from '../server/support'
import { execute, root, start } from './programs'

const main = join(root, 'dist', 'cli', 'main.js')
const bench = (args: string[], env: NodeJS.ProcessEnv = {}) =>
  execute([main, 'bench', 'serve', ...args], { env: { OPENAI_API_KEY: '', ...env } })

let fixture: Fixture
let folder: string
beforeAll(async () => {
  fixture = await startServer()
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-bench-'))
})
afterAll(async () => {
  await fixture.close()
  rmSync(folder, { recursive: true, force: true })
})

interface Report {
  model: string
  seed: number
  goodputBoundsMs: Record<string, number>
  loads: ServeLoadReport[]
}

describe('against a server of this package', () => {
  it('measures several loads, and writes the report and the picture', async () => {
    const save = join(folder, 'report.json')
    const svg = join(folder, 'picture.svg')
    const args = ['--url', fixture.url, '-r', '6', '-c', '1,3', '-i', '8-24', '-o', '6', '--goodput', 'ttft:60000', 'itl:60000', '--save', save, '--svg', svg]
    const { code, stdout, stderr } = await bench(args)
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toContain('1 in flight: 6 of 6 requests completed')
    expect(stdout).toContain('3 in flight: 6 of 6 requests completed')
    expect(stdout).toContain('100.0% of the requests within ttft <= 60000 ms, itl <= 60000 ms')
    const report = JSON.parse(readFileSync(save, 'utf8')) as Report
    expect(report).toMatchObject({ model: 'tiny-storyteller', seed: 1, goodputBoundsMs: { ttft: 60_000, itl: 60_000 } })
    expect(report.loads).toHaveLength(2)
    for (const load of report.loads) {
      // Exact, as token ids went in and ignore_eos kept the outputs from ending.
      expect(load).toMatchObject({ completed: 6, failed: 0, outputTokens: 36, otherLengths: 0, countedByChunks: 0 })
      expect(load.ttftMs.p50).toBeGreaterThan(0)
      expect(load).not.toHaveProperty('samples')
    }
    expect(readFileSync(svg, 'utf8')).toMatch(/^<svg [^]*tiny-storyteller[^]*<\/svg>\n$/)
  })

  it.each(['--save', '--svg'])('%s to where nothing can be written is told before anything is sent', async (option) => {
    for (const file of [join(folder, 'nowhere', 'x'), folder]) {
      const { code, stdout, stderr } = await bench(['--url', 'http://127.0.0.1:1', '--json', option, file])
      expect({ code, stderr }).toEqual({ code: 1, stderr: '' })
      expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'ERR_IO', message: expect.stringContaining(`Cannot write ${file}`) as string } })
    }
  })

  it('chats in an open loop, and prints JSON alone', async () => {
    const { code, stdout, stderr } = await bench(['-u', `${fixture.url}/v1`, '-e', 'chat', '--rate', '50', '-r', '5', '-o', '4', '--json', '-m', 'tiny-storyteller'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const report = JSON.parse(stdout) as Report
    expect(report.loads[0]).toMatchObject({ rate: 50, completed: 5, outputTokens: 20 })
  })

  it('counts what the server refuses', async () => {
    const { code, stdout } = await bench(['-u', fixture.url, '-m', 'another', '-r', '3', '--warmup', '0'])
    expect(code).toBe(1)
    expect(stdout).toMatch(/0 of 3 requests completed in .*, 3 FAILED/)
    expect(stdout).toContain('3 x HTTP 404')
  })
})

describe('usage', () => {
  it('is told apart from bench, whose options have the same names', async () => {
    const { code, stdout } = await execute([main, 'bench', '-b', 'cpu', '-r', '2', '-c', '1', '-i', '8', '-o', '4', '--warmup', '0', '--json'])
    expect(code).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({ requests: 2, outputTokens: 8 })
    const help = await bench(['--help'])
    expect(help.code).toBe(0)
    expect(help.stdout).toContain('Usage: node-tensorrt bench serve')
  })

  it.each([
    [[], /--url/],
    [['--url', 'nowhere'], /address/],
    [['--url', 'http://127.0.0.1:1', '--goodput', 'ttft'], /bounds in ms/],
    [['--url', 'http://127.0.0.1:1', '--rate', '1,0'], /number from/],
    [['--url', 'http://127.0.0.1:1', '--input', '9-1'], /expected a count/],
    [['--url', 'http://127.0.0.1:1', '--header', 'no header'], /header/],
  ])('%j is an error of usage', async (args, message) => {
    const { code, stderr } = await bench(args)
    expect(code).toBe(2)
    expect(stderr).toMatch(message)
  })

  it('says so where there is no server', async () => {
    const { code, stderr } = await bench(['--url', 'http://127.0.0.1:1'])
    expect(code).toBe(1)
    expect(stderr).toMatch(/v1\/models does not answer/)
  })
})

describe('Ctrl-C', () => {
  let hanging: HttpServer
  let url: string
  beforeAll(async () => {
    let asked = 0
    hanging = createHttpServer((request, response) => {
      request.resume()
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      if (asked++ < 3) response.end('data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
      else response.flushHeaders()
    })
    await new Promise<void>((resolve) => hanging.listen(0, '127.0.0.1', resolve))
    url = `http://127.0.0.1:${(hanging.address() as AddressInfo).port}`
  })
  afterAll(() => {
    hanging.closeAllConnections()
    hanging.close()
  })

  it('prints what was measured', async () => {
    const { child, ended } = start([main, 'bench', 'serve', '--url', url, '-m', 'x', '-c', '2', '--warmup', '0'])
    const hangs = new Promise<void>((resolve) => {
      let seen = 0
      hanging.on('request', () => ++seen === 5 && resolve())
    })
    await hangs
    child.kill('SIGINT')
    const { code, stdout } = await ended
    expect(code).toBe(130)
    expect(stdout).toContain('3 of 5 requests completed')
    expect(stdout).toContain('2 broken off')
  })
})
