/** Token constraints and biases through the whole loop. */
import { afterEach, describe, expect, it } from 'vitest'
import '../matchers'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { type Executor, LLM, TensorRTError, type TokenConstraint } from '../../../lib'
import { WrappedExecutor } from '../../support/wrapped_executor'
import { Constraint, oddThenEven } from '../scheduler/drive'

const open: LLM[] = []
afterEach(async () => {
  for (const llm of open.splice(0)) await llm.close()
})

function serve(executor: Executor, failover?: () => Promise<Executor>): LLM {
  const llm = LLM.fromExecutor(executor, { failover, onWarning: () => {} })
  open.push(llm)
  return llm
}

const tokens = [1, 2, 3, 4, 5, 6]
const COUNT = 24

/** Without `setMask`, as an executor may be. */
const maskless = (): Executor => new WrappedExecutor(new HashExecutor(), false)

/** Dies at its fifth step. */
class Dying extends HashExecutor {
  private steps = 0
  override submit(step: Int32Array): void {
    if (++this.steps >= 5) throw new TensorRTError('ERR_BACKEND_DEAD', 'gone')
    super.submit(step)
  }
}

describe('constrain', () => {
  it('with a close() that throws warns, and ends nothing: finished, aborted, refused or failed', async () => {
    const llm = serve(new HashExecutor())
    const warned: string[] = []
    const onWarning = (warning: Error): void => void warned.push(`${warning.name}: ${warning.message}`)
    process.on('warning', onWarning)
    try {
      const closing = (...also: (() => void)[]) => (): TokenConstraint => ({
        mask: () => null,
        accept: () => also.forEach((one) => one()),
        close: () => {
          throw new Error('of the caller')
        },
      })
      const free = llm.generate({ tokens, maxTokens: COUNT })
      const controller = new AbortController()
      const aborted = llm.generate({ tokens, maxTokens: COUNT, signal: controller.signal, constrain: closing(() => controller.abort()) })
      const failed = llm.generate({ tokens, maxTokens: COUNT, constrain: closing(() => { throw new Error('accept') }) })
      const refused = llm.generate({ tokens, maxTokens: 2, deadline: 0, constrain: closing() })
      expect((await llm.generate({ tokens, maxTokens: 4, n: 2, constrain: closing() }).result()).choices).toHaveLength(2)
      await expect(aborted.result()).rejects.toHaveCode('ABORT_ERR')
      await expect(failed.result()).rejects.toHaveCode('ERR_INVALID_ARGUMENT', /accept/)
      await expect(refused.result()).rejects.toHaveCode('ERR_DEADLINE_EXCEEDED')
      expect((await free.result()).tokens).toHaveLength(COUNT)
      expect(llm.health().state).toBe('ready')
      await expect.poll(() => warned.length).toBe(5)
      expect(new Set(warned)).toEqual(new Set(['NodeTensorRTWarning: The close() of a token constraint threw: of the caller']))
    } finally {
      process.off('warning', onWarning)
    }
  })

  it('binds each choice, beside choices and requests that are free', async () => {
    const llm = serve(new HashExecutor())
    const seen: number[][] = []
    const constrain = (index: number): TokenConstraint => {
      const constraint = new Constraint(oddThenEven)
      seen[index] = constraint.accepted
      return constraint
    }
    const bound = llm.generate({ tokens, maxTokens: COUNT, n: 3, temperature: 1, seed: 3, constrain })
    const free = llm.generate({ tokens, maxTokens: COUNT })
    const { choices } = await bound.result()
    for (const { index, tokens: output, finishReason } of choices) {
      expect(output.map((token) => token % 2)).toEqual(output.map((_, i) => (i + 1) % 2))
      expect(seen[index]).toEqual(output.slice(0, -1))
      expect(finishReason).toBe('length')
    }
    expect(new Set(choices.map((choice) => choice.tokens.join())).size).toBe(3)
    const alone = await serve(new HashExecutor()).generate({ tokens, maxTokens: COUNT }).result()
    expect((await free.result()).tokens).toEqual(alone.tokens)
  })

  it('ends a request with what its constraint throws, after the tokens before that, and no other', async () => {
    const llm = serve(new HashExecutor())
    const reason = new RangeError('unexpected token')
    let accepted = 0
    const constrain = (): TokenConstraint => ({
      mask: () => null,
      accept: () => {
        if (++accepted === 3) throw reason
      },
    })
    const bad = llm.generate({ tokens, maxTokens: COUNT, constrain })
    const good = llm.generate({ tokens, maxTokens: COUNT, constrain: () => new Constraint(oddThenEven) })
    const streamed: number[] = []
    const failed = (async () => {
      for await (const chunk of bad) streamed.push(...chunk.tokens)
    })()
    await expect(failed).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', cause: reason })
    expect(streamed.length).toBe(2)
    expect((await good.result()).tokens.length).toBe(COUNT)
    llm.check()
  })

  it('rejects what is wrong with the constraint at once', async () => {
    const llm = serve(new HashExecutor())
    const wrong: unknown[] = [
      () => ({}),
      () => null,
      () => new Constraint(() => false),
      () => ({ mask: () => [1], accept: () => {} }),
      7,
    ]
    for (const constrain of wrong) {
      const options = { tokens, constrain: constrain as () => TokenConstraint }
      await expect(llm.generate(options).result()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    }
    const own = new Error('no such grammar')
    const throwing = (): TokenConstraint => {
      throw own
    }
    await expect(llm.generate({ tokens, constrain: throwing }).result()).rejects.toBe(own)
    expect(llm.stats()).toMatchObject({ running: 0, waiting: 0 })
  })

  it('is refused by an executor that takes no masks, and so is what moves to one', async () => {
    const llm = serve(maskless())
    const constrain = (): TokenConstraint => new Constraint()
    await expect(llm.generate({ tokens, constrain }).result()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    expect((await llm.generate({ tokens, maxTokens: 3 }).result()).tokens.length).toBe(3)

    const moved = serve(new Dying(), () => Promise.resolve(maskless()))
    const bound = moved.generate({ tokens, maxTokens: COUNT, constrain })
    const free = moved.generate({ tokens, maxTokens: COUNT })
    await expect(bound.result()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    expect((await free.result()).tokens.length).toBe(COUNT)
    expect(moved.stats().failovers).toBe(1)
  })

  it('goes on where it was when another executor takes over', async () => {
    const calm = await serve(new HashExecutor()).generate({ tokens, maxTokens: COUNT, constrain: () => new Constraint(oddThenEven) }).result()
    const llm = serve(new Dying(), () => Promise.resolve(new HashExecutor()))
    const moved = await llm.generate({ tokens, maxTokens: COUNT, constrain: () => new Constraint(oddThenEven) }).result()
    expect(llm.stats().failovers).toBe(1)
    expect(moved.tokens).toEqual(calm.tokens)
  })
})

describe('logitBias', () => {
  it('reaches the sampler, of every choice', async () => {
    const llm = serve(new HashExecutor())
    for (const logitBias of [{ 42: 100 }, new Map([[42, 100]])]) {
      const { choices } = await llm.generate({ tokens, n: 2, maxTokens: 5, temperature: 1, logitBias }).result()
      for (const choice of choices) expect(choice.tokens).toEqual([42, 42, 42, 42, 42])
    }
    const { tokens: banned } = await llm.generate({ tokens, maxTokens: 200, temperature: 5, logitBias: { 42: -1e6 } }).result()
    expect(banned).not.toContain(42)
  })
})
