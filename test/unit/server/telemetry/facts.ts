/** Requests, told of as routes do. */
import type { Generation, LLM } from '../../../../lib'
import type { RequestFacts, RequestTelemetry, Telemetry } from '../../../../lib/server/seams'
import { requestFacts } from '../../../support/request_facts'

/** Runs a request as a route does: tokens are told as they come, then its end. */
export async function serve(
  telemetry: Telemetry,
  llm: LLM,
  options: Parameters<LLM['generate']>[0] & { prompt: string },
  changes: Partial<RequestFacts> = {},
): Promise<Awaited<ReturnType<Generation['result']>>> {
  const promptTokens = llm.tokenize(options.prompt).length
  const { n = 1, maxTokens } = options
  const request = telemetry.start(requestFacts({ n, maxTokens, promptTokens, ...changes }))
  const generation = llm.generate(options)
  try {
    await stream(request, generation)
    const result = await generation.result()
    const finishReasons = result.choices.map(({ finishReason }) => finishReason)
    request.end({ kind: 'finished', finishReasons, usage: result.usage }, { queueMs: result.timings.queueMs })
    return result
  } catch (error) {
    request.end({ kind: 'failed', error: error as Error }, { queueMs: undefined })
    throw error
  }
}

export async function stream(request: RequestTelemetry, generation: Generation): Promise<void> {
  for await (const { index, tokens } of generation) request.tokens(index, tokens.length)
}
