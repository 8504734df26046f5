/** Generates under random JSON schemas, and judges the outputs by parsing and validating them. */
import Ajv from 'ajv/dist/2020'
import type { GenerationResult, Grammar, LLM } from '../../lib'
import { seededRandom } from '../../lib/cli/load_generator'
import { checkGrammar } from '../../lib/grammar'
import { Acceptance } from './grammar_acceptance'
import { type Schema, SchemaGenerator } from './random_schemas'

export interface SchemaRun {
  schemas: number
  /** Ended with `stop`, parsed and valid. */
  complete: number
  /** Ended with `length`, and began as the grammar asks. */
  cut: number
  /** What must not be: neither of the two, with the schema's number. */
  faults: string[]
  tokens: number
  seconds: number
}

export interface SchemaRunOptions {
  schemas: number
  seed: number
  /** Requests at once. */
  concurrency: number
  maxTokens: number
  whitespace?: number
  /** No new requests after so many seconds. */
  seconds?: number
}

export async function runSchemas(llm: LLM, options: SchemaRunOptions): Promise<SchemaRun> {
  const acceptance = await Acceptance.load()
  const generator = new SchemaGenerator(seededRandom(options.seed))
  const run: SchemaRun = { schemas: 0, complete: 0, cut: 0, faults: [], tokens: 0, seconds: 0 }
  const started = performance.now()
  const timeIsUp = (): boolean => performance.now() - started > (options.seconds ?? Infinity) * 1000
  let next = 0
  const worker = async (): Promise<void> => {
    while (next < options.schemas && !timeIsUp()) {
      const number = next++
      const schema = generator.next()
      const grammar: Grammar = { jsonSchema: schema, ...(options.whitespace === undefined ? {} : { whitespace: options.whitespace }) }
      run.schemas++
      try {
        const result = await llm.generate({ prompt: 'Once upon a time', grammar, temperature: 1, topP: 1, seed: number, maxTokens: options.maxTokens }).result()
        run.tokens += result.tokens.length
        const fault = judge(result, schema, grammar, acceptance)
        if (fault !== undefined) run.faults.push(`${number}: ${fault}: ${JSON.stringify(schema)} gave ${result.text}`)
        else if (result.finishReason === 'stop') run.complete++
        else run.cut++
      } catch (error) {
        run.faults.push(`${number}: ${String(error)}: ${JSON.stringify(schema)}`)
      }
    }
  }
  await Promise.all(Array.from({ length: options.concurrency }, worker))
  run.seconds = (performance.now() - started) / 1000
  return run
}

function judge({ text, finishReason }: GenerationResult, schema: Schema, grammar: Grammar, acceptance: Acceptance): string | undefined {
  if (finishReason !== 'stop') {
    return acceptance.ofPrefix(checkGrammar(grammar).text, text) ? undefined : 'the output is no beginning under the grammar'
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    return (error as Error).message
  }
  const validate = new Ajv({ strict: false, validateFormats: false }).compile(schema)
  return validate(value) ? undefined : JSON.stringify(validate.errors?.[0])
}
