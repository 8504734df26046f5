/** Some thousands of the hostile requests; bench/server/hostile.ts sends a million. */
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LLM } from '../../../lib'
import { createKeySecurity, createServer, hashApiKey, makeApiKey, type Server } from '../../../lib/server'
import { runHostile } from './hostile_run'

const model = join(__dirname, '..', '..', '..', 'models', 'tiny-storyteller')
const apiKey = makeApiKey()
/** All parts have requests of all kinds; what others on the machine do does not come in each. */
const PARTS = 4
const errors: unknown[] = []

let llm: LLM
let server: Server
let port: number
beforeAll(async () => {
  llm = await LLM.load(model, { backend: 'cpu' })
  server = createServer(llm, {
    security: createKeySecurity({ keys: [{ name: 'fuzz', sha256: hashApiKey(apiKey) }] }),
    onError: (error) => errors.push(error),
  })
  ;({ port } = await server.listen({ port: 0 }))
})
afterAll(async () => {
  await server.close()
  await llm.close()
})

describe('hostile requests', () => {
  it('are each answered as a fault of the client, and hurt nobody', { timeout: 900_000 }, async () => {
    const requests = Math.ceil(Number(process.env['NT_HOSTILE_REQUESTS'] ?? 4000) / PARTS)
    const delays: number[] = []
    for (let part = 0; part < PARTS; part++) {
      const delay = monitorEventLoopDelay({ resolution: 10 })
      delay.enable()
      const report = await runHostile({ port, seed: 7, from: part * requests, requests, connections: 16, apiKey })
      delay.disable()
      expect(report.failures).toEqual([])
      expect(report.failed).toBe(0)
      expect(errors).toEqual([])
      delays.push(delay.percentile(99) / 1e6)
    }
    // The client is in this process, too: it only tells that nothing blocks for long.
    expect(Math.min(...delays), delays.join()).toBeLessThan(500)
    // All of it is over: no page is lost, and nothing runs on.
    await expect.poll(() => ({ pending: server.pending, ...llm.stats() })).toMatchObject({ pending: 0, running: 0, waiting: 0, kv: { usedPages: 0 } })
    llm.check()
    expect(({} as Record<string, unknown>)['n']).toBeUndefined()
  })
})
