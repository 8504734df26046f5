/** Engines tried in a process of their own, through the real addon; what happens to that process is the stand-in's choice. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { buildEngine, tryEngine } from '../../../lib'
import '../matchers'
import { compileStandIn, failure, root, temporaryFolder, useModule } from '../tensorrt/fixtures'

const folder = temporaryFolder()
const plan = join(folder, 'some.plan')
let standIn: string
beforeAll(() => {
  standIn = compileStandIn(folder)
  writeFileSync(plan, 'a plan that nothing runs')
})
beforeEach(() => useModule(standIn))
afterEach(() => {
  vi.unstubAllEnvs()
})

describe('tryEngine', () => {
  it('reports what was refused, with its reason', async () => {
    const result = await tryEngine(plan)
    expect(result).toMatchObject({ ok: false, outcome: 'refused' })
    expect(result.error).toHaveCode('ERR_NO_GPU', /the stand-in runs nothing/)
  })

  it('reports a crash by its signal', async () => {
    vi.stubEnv('STAND_IN_RUNTIME', 'crash')
    const result = await tryEngine(plan)
    expect(result).toMatchObject({ ok: false, outcome: 'crashed', signal: 'SIGSEGV' })
    expect(result.error).toHaveCode('ERR_ENGINE_INVALID', /some\.plan ended the process of SIGSEGV/)
  })

  it('ends what does not come back', async () => {
    vi.stubEnv('STAND_IN_RUNTIME', 'hang')
    const result = await tryEngine(plan, { timeoutMs: 500 })
    expect(result).toMatchObject({ ok: false, outcome: 'timed-out' })
    expect(result.error).toHaveCode('ERR_TIMEOUT', /within 500 ms/)
    // The stand-in sleeps for an hour.
    expect(result.milliseconds).toBeLessThan(120_000)
    const signal = AbortSignal.timeout(300)
    expect(await failure(tryEngine(plan, { signal }))).toMatchObject({ name: 'AbortError', cause: { name: 'TimeoutError' } })
  })

  it('checks a folder before it starts anything', async () => {
    const { path } = await buildEngine({ onnx: join(root, 'test', 'fixtures', 'onnx', 'mlp_static.onnx'), out: join(folder, 'engine'), cache: false })
    expect(await tryEngine(path)).toMatchObject({ outcome: 'refused', error: { code: 'ERR_NO_GPU' } })
    writeFileSync(join(path, 'plan'), 'other')
    expect(await failure(tryEngine(path))).toHaveCode('ERR_ENGINE_INVALID', /5 bytes/)
  })

  it('names what is wrong with its arguments', async () => {
    expect(await failure(tryEngine(join(folder, 'nowhere')))).toHaveCode('ERR_ENGINE_INVALID', /no engine at/)
    expect(await failure(tryEngine(''))).toHaveCode('ERR_INVALID_ARGUMENT', /"path"/)
    expect(await failure(tryEngine(plan, { timeoutMs: 0 }))).toHaveCode('ERR_INVALID_ARGUMENT', /"timeoutMs"/)
    expect(await failure(tryEngine(plan, { timeOut: 1 } as never))).toHaveCode('ERR_INVALID_ARGUMENT', /timeOut/)
    useModule(join(folder, 'nowhere.so'))
    expect(await failure(tryEngine(plan))).toHaveCode('ERR_TENSORRT_MODULE_NOT_FOUND')
  })
})
