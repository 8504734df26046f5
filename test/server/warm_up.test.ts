/** What runs before a server listens. The code is warm once in a process, so the order of these tests is part of them. */
import { request } from 'node:http'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { HashExecutor } from '../../examples/custom-executor/hash_executor'
import { LLM } from '../../lib'
import { createServer, createSlaAdmission, createTelemetry, type Security, type ServerOptions, type ServerTelemetry } from '../../lib/server'
import { MODEL, until } from './support'

let llm: LLM

beforeEach(async () => {
  llm = await LLM.load(MODEL, { backend: 'cpu', threads: 1 })
})

afterEach(async () => {
  vi.restoreAllMocks()
  await llm.close()
})

async function listening(options: ServerOptions = {}): Promise<{ url: string; close(): Promise<void> }> {
  const server = createServer(llm, options)
  return { url: (await server.listen({ port: 0 })).url, close: () => server.close() }
}

/** Texts that the model's tokenizer has encoded on this thread. */
function encodedTexts(): { readonly count: number } {
  const encode = vi.spyOn(llm.tokenizer!, 'encode')
  return {
    get count() {
      return encode.mock.calls.length
    },
  }
}

/** A model that never answers a step. */
class SilentExecutor extends HashExecutor {
  override submit(): void {}
}

describe('a start that is not to be warmed up, or cannot be', () => {
  it('runs nothing where it is switched off', async () => {
    const texts = encodedTexts()
    const server = await listening({ warmUp: false })
    expect(texts.count).toBe(0)
    await server.close()
  })

  it('goes on where the warm-up fails', async () => {
    vi.spyOn(LLM, 'fromExecutor').mockImplementation(() => {
      throw new Error('no dry run')
    })
    const texts = encodedTexts()
    const server = await listening()
    expect((await fetch(`${server.url}/health/ready`)).status).toBe(200)
    expect(texts.count).toBe(0)
    await server.close()
  })

  it('ends with its signal, and may be tried again', async () => {
    const server = createServer(llm)
    const reason = new Error('not now')
    const texts = encodedTexts()
    const controller = new AbortController()
    const starting = server.listen({ port: 0, signal: controller.signal })
    await until(() => texts.count > 0, 'the warm-up has begun')
    controller.abort(reason)
    await expect(starting).rejects.toMatchObject({ code: 'ABORT_ERR', cause: reason })
    expect(server.address).toBeUndefined()
    await expect(server.listen({ signal: AbortSignal.abort(reason) })).rejects.toMatchObject({ code: 'ABORT_ERR', cause: reason })
    await expect(server.listen({ signal: {} as never })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    await server.close()
  })

  it('ends where the server is closed', async () => {
    const server = createServer(llm)
    const texts = encodedTexts()
    const starting = server.listen({ port: 0 })
    const ended = expect(starting).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    await until(() => texts.count > 0, 'the warm-up has begun')
    await server.close()
    const after = texts.count
    await ended
    expect(texts.count).toBe(after)
    expect(server.address).toBeUndefined()
  })
})

describe('the first start of a process', () => {
  it('runs the code of requests, and nothing of the server hears of it', async () => {
    const security: Security = { authenticate: vi.fn(() => ({})), begin: vi.fn(() => ({ release: vi.fn() })) }
    const telemetry = createTelemetry(llm)
    const heard = (['start', 'refused', 'httpStarted', 'http'] as const).map((name) => vi.spyOn(telemetry, name))
    const admission = createSlaAdmission(llm, { ttftMs: 1000, itlMs: 1000 })
    const admit = vi.spyOn(admission, 'admit')
    const generate = vi.spyOn(llm, 'generate')
    const onError = vi.fn()
    const texts = encodedTexts()
    const before = { stats: llm.stats(), metrics: await counters(telemetry), sla: admission.snapshot() }

    const server = await listening({ security, telemetry, admission, onError })

    expect(texts.count).toBeGreaterThan(0)
    expect(generate).not.toHaveBeenCalled()
    expect(security.authenticate).not.toHaveBeenCalled()
    expect(security.begin).not.toHaveBeenCalled()
    expect(admit).not.toHaveBeenCalled()
    for (const spy of heard) expect(spy).not.toHaveBeenCalled()
    expect(onError).not.toHaveBeenCalled()
    expect({ stats: llm.stats(), metrics: await counters(telemetry), sla: admission.snapshot() }).toEqual(before)
    llm.check()

    // What was let alone so far hears of a real request.
    const body = JSON.stringify({ prompt: 'Once', max_tokens: 2 })
    const answer = await fetch(`${server.url}/v1/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body })
    expect(answer.status).toBe(200)
    await answer.text()
    expect(generate).toHaveBeenCalledOnce()
    expect(admit).toHaveBeenCalledOnce()
    expect(await counters(telemetry)).not.toEqual(before.metrics)
    await server.close()
  })

  it('is the only one that does', async () => {
    const texts = encodedTexts()
    const server = await listening()
    expect(texts.count).toBe(0)
    await server.close()
  })
})

describe('bounds', () => {
  // The code of this process is warm by now: a module of its own is not.
  const cold = async () => {
    vi.resetModules()
    const { LLM: ColdLLM } = await import('../../lib/index.js')
    const { createServer: createColdServer } = await import('../../lib/server/index.js')
    return { ColdLLM, createColdServer }
  }

  it('ends in time where requests are never answered', async () => {
    const { ColdLLM, createColdServer } = await cold()
    const silent = ColdLLM.fromExecutor(new SilentExecutor())
    const fromExecutor = vi.spyOn(ColdLLM, 'fromExecutor').mockImplementation(() => silent)
    const model = await ColdLLM.load(MODEL, { backend: 'cpu', threads: 1 })
    const server = createColdServer(model)
    const { url } = await server.listen({ port: 0 })
    expect(fromExecutor).toHaveBeenCalledOnce()
    // Requests had come, and were given up.
    expect(silent.stats().kv.usedPages).toBeGreaterThan(0)
    await expect(silent.generate({ tokens: [1] }).result()).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    expect(await status(`${url}/health/ready`)).toBe(200)
    await server.close()
    await model.close()
  })

  it('leaves nothing that keeps a process alive', async () => {
    const { ColdLLM, createColdServer } = await cold()
    const model = await ColdLLM.load(MODEL, { backend: 'cpu', threads: 1 })
    const count = (): number => process.getActiveResourcesInfo().filter((name) => name === 'Timeout' || name === 'Immediate').length
    const before = count()
    const server = createColdServer(model)
    await server.listen({ port: 0 })
    await server.close()
    await until(() => count() <= before, 'timers have ended')
    await model.close()
  })

  it('serves a model without tokenizer and chat template', async () => {
    const { ColdLLM, createColdServer } = await cold()
    const bare = ColdLLM.fromExecutor(new HashExecutor())
    const server = createColdServer(bare)
    const { url } = await server.listen({ port: 0 })
    expect(bare.stats().tokens.generated).toBe(0)
    expect(await status(`${url}/health/ready`)).toBe(200)
    await server.close()
    await bare.close()
  })
})

/** All series that count requests, tokens and steps; not those of the process, which go on by themselves. */
async function counters(telemetry: ServerTelemetry): Promise<string[]> {
  const { body } = await telemetry.metrics()
  return body.split('\n').filter((line) => /^(?:vllm:|node_tensorrt_(?:request|http|admission|queue|access|time|inter|step|sla))/.test(line))
}

function status(url: string): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    request(url, (answer) => resolve(answer.resume().statusCode)).on('error', reject).end()
  })
}
