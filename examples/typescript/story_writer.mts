// A typed class around an LLM: options in, a stream of a type of one's own out, errors told apart by their code.
//   npx tsx examples/typescript/story_writer.mts
import { fileURLToPath } from 'node:url'
import {
  AbortError,
  type ChatMessage,
  type ErrorCode,
  type FinishReason,
  type GenerateOptions,
  LLM,
  type LLMOptions,
  TensorRTError,
} from 'node-tensorrt'

/** What a caller may choose; the messages are this class's business. */
type StoryOptions = Pick<GenerateOptions, 'temperature' | 'seed' | 'maxTokens' | 'signal'>

type StoryEvent = { kind: 'text'; text: string } | { kind: 'end'; tokens: number; reason: FinishReason }

class StoryWriter {
  static async open(folder: string, options?: LLMOptions): Promise<StoryWriter> {
    return new StoryWriter(await LLM.load(folder, options))
  }

  private constructor(private readonly llm: LLM) {}

  async *write(about: string, options: StoryOptions = {}): AsyncGenerator<StoryEvent, void> {
    const messages: ChatMessage[] = [{ role: 'user', content: `Write a very short story about ${about}.` }]
    const generation = this.llm.generate({ ...options, messages })
    for await (const { text } of generation) if (text !== '') yield { kind: 'text', text }
    const { usage, finishReason } = await generation.result()
    yield { kind: 'end', tokens: usage.completionTokens, reason: finishReason }
  }

  close(): Promise<void> {
    return this.llm.close()
  }
}

/** Codes after which the same request may succeed later. */
const RETRYABLE: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['ERR_QUEUE_FULL', 'ERR_TIMEOUT', 'ERR_STEP_FAILED'])

function describe(error: unknown): string {
  if (error instanceof AbortError) return 'aborted'
  if (!(error instanceof TensorRTError)) throw error
  return `${error.code}, ${RETRYABLE.has(error.code) ? 'worth a retry' : 'not worth a retry'}`
}

const writer = await StoryWriter.open(fileURLToPath(new URL('../../models/tiny-storyteller', import.meta.url)), {
  backend: 'cpu',
})
for await (const event of writer.write('a brave fox', { temperature: 0 })) {
  if (event.kind === 'text') process.stdout.write(event.text)
  else console.log(`\n(${event.tokens} tokens, ${event.reason})`)
}
try {
  for await (const event of writer.write('a fox', { temperature: Number.NaN })) console.log(event.kind)
} catch (error) {
  console.log(describe(error))
}
await writer.close()
