/** Runs the prompts of a request, and answers with one body or with a stream of events. */
import { abortGeneration, consumeChunks, type EncodedPrompt, type Generation, type GenerationChunk, type GenerationResult, type Usage } from '../../llm'
import { TensorRTError } from '../../errors'
import { ApiError, toApiError } from '../errors'
import { DONE, EventStream } from '../http/event_stream'
import type { Exchange } from '../http/exchange'
import type { ServedModel } from '../registry'
import type { Services } from '../services'
import type { SharedOptions } from './sampling'
import { reasonOf, type Work } from './work'

/** Turns what was generated into what an API answers. Choices count over all prompts. */
export interface AnswerFormat {
  /** Events that come before the first token of a choice; '' for none. */
  open(choice: number): string
  /** Events for a piece of a choice; '' for none. */
  chunk(choice: number, chunk: GenerationChunk): string
  /** The last events but `[DONE]`. */
  close(usage: Usage): string
  /** The whole answer. */
  body(results: readonly GenerationResult[], usage: Usage): unknown
}

export interface RunOptions {
  services: Services
  exchange: Exchange
  served: ServedModel
  work: Work
  prompts: readonly EncodedPrompt[]
  options: SharedOptions
  stream: boolean
  format: AnswerFormat
  /** Field that a grammar of the request is of. */
  grammarParam: string | undefined
}

/** @throws ApiError, while the status can still be chosen */
export function answer(run: RunOptions): Promise<Response> {
  return run.stream ? answerEvents(run) : answerBody(run)
}

function start({ served, exchange, prompts, options }: RunOptions): Generation[] {
  return prompts.map((encoded) => {
    if (exchange.abortReason !== undefined) return served.llm.generate({ ...options, encoded, signal: exchange.signal })
    // What it takes of its options, it takes before it returns.
    options.encoded = encoded
    const generation = served.llm.generate(options)
    exchange.follow(() => abortGeneration(generation, exchange.abortReason))
    return generation
  })
}

type OnChunk = (choice: number, chunk: GenerationChunk) => Promise<void> | undefined

/** What all of them come to. When one fails, the others end. */
async function consume(run: RunOptions, onChunk: OnChunk): Promise<GenerationResult[]> {
  const { work, exchange, options } = run
  const n = options.n ?? 1
  return Promise.all(
    start(run).map(async (generation, prompt) => {
      try {
        return await consumeChunks(generation, (chunk) => {
          const choice = prompt * n + chunk.index
          work.tokens(choice, chunk.tokens.length)
          // A slow reader's promise: meanwhile what comes is put together, and costs no memory beyond the output.
          return onChunk(choice, chunk)
        })
      } catch (error) {
        exchange.abort(error as Error)
        throw inGrammar(reasonOf(error), run.grammarParam)
      }
    }),
  )
}

/** What is wrong with a grammar, by the field that asks for it: the library's option is nothing that the client knows. */
function inGrammar(error: unknown, param: string | undefined): unknown {
  if (param === undefined || !(error instanceof TensorRTError)) return error
  const { code, message } = error
  if (code !== 'ERR_GRAMMAR_INVALID' && !(code === 'ERR_INVALID_ARGUMENT' && message.startsWith('"grammar'))) return error
  const told = message.replace(/^"grammar(?:\.\w+)?/, `"${param}`)
  return ApiError.invalid(param, told === message ? `"${param}": ${message}` : told, 'invalid_grammar')
}

async function answerBody(run: RunOptions): Promise<Response> {
  const { work, exchange, format } = run
  try {
    const results = await consume(run, () => undefined)
    const usage = work.finish(results)
    exchange.usage = usage
    return exchange.json(200, format.body(results, usage))
  } catch (error) {
    throw work.fail(error)
  }
}

async function answerEvents(run: RunOptions): Promise<Response> {
  const { services, exchange, work, format } = run
  const events = new EventStream(exchange, services)
  const opened = new Set<number>()
  let unfinished = run.prompts.length * (run.options.n ?? 1)
  const pump = async (): Promise<void> => {
    try {
      const results = await consume(run, (choice, chunk) => {
        let text = ''
        if (!opened.has(choice)) {
          opened.add(choice)
          text = format.open(choice)
        }
        text += format.chunk(choice, chunk)
        if (chunk.finishReason !== undefined && --unfinished === 0 && events.isStarted) {
          // In one packet with the end, which comes in this very turn. A first event does not wait.
          events.hold(text)
          return undefined
        }
        return text === '' ? undefined : events.write(text)
      })
      const usage = work.finish(results)
      exchange.usage = usage
      events.finish(format.close(usage) + DONE)
    } catch (error) {
      const failure = work.fail(error)
      if (!events.isStarted) throw failure
      exchange.errorCode = failure.code ?? failure.type
      events.finish(`data: ${JSON.stringify(failure.body)}\n\n`)
    } finally {
      events.end()
    }
  }
  const pumping = pump()
  try {
    // The pump ends without a first event only where it fails.
    return await Promise.race([events.response, pumping.then(() => events.response)])
  } catch (error) {
    throw toApiError(error)
  }
}
