/** The thread that renders chats and encodes long prompts, both of which block theirs. Started by encoder_thread.ts alone. */
import { parentPort, workerData } from 'node:worker_threads'
import { TensorRTError } from '../errors'
import { ChatTemplate, encodeChatInput, Tokenizer } from '../text'
import type { EncodeJob, EncoderAnswer, EncoderSource } from './encoder_messages'

/** Longest time for which a chat template may run. */
const RENDER_LIMIT_MS = 1000

const port = parentPort!
const { tokenizerJson, tokenizerConfig, chatTemplate } = workerData as EncoderSource
const tokenizer = new Tokenizer(typeof tokenizerJson === 'string' ? JSON.parse(tokenizerJson) : tokenizerJson, tokenizerConfig)
const template = new ChatTemplate(chatTemplate.templates, new Map(chatTemplate.specialTokens))

function idsOf({ input, maxTokens }: EncodeJob): number[] {
  if (input.kind === 'prompt') {
    const { prompt, addSpecialTokens, allowSpecial } = input
    return tokenizer.encode(prompt, { addSpecialTokens, allowSpecial, maxTokens })
  }
  const until = performance.now() + RENDER_LIMIT_MS
  const guard = (): void => {
    if (performance.now() <= until) return
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `The chat template takes longer than ${RENDER_LIMIT_MS} ms for these messages`, {
      hint: 'send fewer of them',
    })
  }
  return encodeChatInput(tokenizer, template, input.chat, { allowSpecial: input.allowSpecial, maxTokens, guard }).ids
}

function failure(error: unknown): EncoderAnswer {
  if (!(error instanceof TensorRTError)) {
    return { kind: 'failed', code: 'ERR_INTERNAL', message: error instanceof Error ? error.message : String(error), hint: undefined }
  }
  const { code, hint } = error
  // The message ends with the hint, which the other side adds again.
  const message = hint === undefined ? error.message : error.message.slice(0, -` (${hint})`.length)
  return { kind: 'failed', code, message, hint }
}

port.on('message', (job: EncodeJob) => {
  try {
    const ids = Int32Array.from(idsOf(job))
    port.postMessage({ kind: 'encoded', ids } satisfies EncoderAnswer, [ids.buffer])
  } catch (error) {
    port.postMessage(failure(error))
  }
})
port.postMessage({ kind: 'ready' } satisfies EncoderAnswer)
