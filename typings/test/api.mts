// The public types as an importing program sees them. Checked by `tsc -p typings`, never run.
import { expectTypeOf } from 'expect-type'
import {
  AbortError,
  type ErrorCode,
  type Executor,
  type GenerateOptions,
  Generation,
  type GenerationChunk,
  type GenerationResult,
  LLM,
  type LLMOptions,
  type StepResult,
  TensorRTError,
  Tokenizer,
  version,
} from 'node-tensorrt'

expectTypeOf(LLM.load).parameters.toEqualTypeOf<[folder: string, options?: LLMOptions]>()
expectTypeOf(LLM.load).returns.resolves.toEqualTypeOf<LLM>()
expectTypeOf(version).toBeString()

const llm = await LLM.load('model', { backend: 'auto', onWarning: ({ code }) => expectTypeOf(code).toEqualTypeOf<'CPU_FALLBACK' | 'BACKEND_FAILED_OVER' | 'BACKEND_DOWN' | 'BACKEND_RESTARTED' | 'BACKEND_RESTART_FAILED'>() })
const generation = llm.generate({ prompt: 'Once', maxTokens: 64, signal: new AbortController().signal })
expectTypeOf(generation).toEqualTypeOf<Generation>()
for await (const chunk of generation) {
  expectTypeOf(chunk).toEqualTypeOf<GenerationChunk>()
  expectTypeOf(chunk.text).toBeString()
  expectTypeOf(chunk.tokens).toEqualTypeOf<number[]>()
  expectTypeOf(chunk.finishReason).toEqualTypeOf<'stop' | 'length' | undefined>()
}
expectTypeOf(generation.result()).resolves.toEqualTypeOf<GenerationResult>()
expectTypeOf(llm.tokenizer).toEqualTypeOf<Tokenizer | undefined>()
expectTypeOf(llm.stats().kv.freePages).toBeNumber()
expectTypeOf(llm.close()).resolves.toBeVoid()

// An optional field may be absent or undefined, so that options can be passed through.
expectTypeOf<{ temperature: undefined }>().toMatchTypeOf<Pick<GenerateOptions, 'temperature'>>()
llm.generate({ messages: [{ role: 'user', content: 'Hello' }] })
llm.generate({ tokens: Int32Array.of(1, 2, 3) })
// @ts-expect-error a prompt is text
llm.generate({ prompt: 5 })
// @ts-expect-error no such backend
void LLM.load('model', { backend: 'cuda' })
// @ts-expect-error the constructor is not public
new LLM()

const error = new TensorRTError('ERR_QUEUE_FULL', 'full', { hint: 'wait' })
expectTypeOf(error.code).toEqualTypeOf<ErrorCode>()
expectTypeOf<'ERR_DISPOSED'>().toMatchTypeOf<ErrorCode>()
expectTypeOf<AbortError['code']>().toEqualTypeOf<'ABORT_ERR'>()
// @ts-expect-error not one of ours
new TensorRTError('ENOENT', 'no')

// Somebody else's executor.
const executor: Executor = {
  info: llm.info as never,
  start: (onResult) => expectTypeOf(onResult).toEqualTypeOf<(result: StepResult) => void>(),
  openSlot: ({ prompt }) => expectTypeOf(prompt).toMatchTypeOf<Int32Array>(),
  closeSlot: (slot) => expectTypeOf(slot).toBeNumber(),
  submit: (step) => expectTypeOf(step).toMatchTypeOf<Int32Array>(),
  close: () => Promise.resolve(),
}
expectTypeOf(LLM.fromExecutor(executor)).toEqualTypeOf<LLM>()
