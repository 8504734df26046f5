/** The prompts that an engine is verified with, and the numbers that a reference makes of them. */
import { TensorRTError } from '../errors'
import { describeValue } from '../runtime'
import { type Executor, type ExecutorInfo } from '../scheduler'
import { greedyRow, LogitComparison, type PromptReference } from './logit_comparison'
import type { ModelFolder } from './model_folder'
import { seededRandom } from './statistics'
import type { ForcedRunner } from './teacher_forcing'
import { toTokenArray } from './validate'

/** Lengths of the built-in prompts, in tokens: within a page, over its edge, and over several. */
const BUILT_IN_LENGTHS = [2, 7, 16, 17, 31, 48, 64, 96]

/**
 * Random tokens of the model's vocabulary that stand for text, after what the tokenizer puts first. The same seed gives the
 * same prompts.
 *
 * @param room most tokens of a prompt
 */
function builtInPrompts({ tokenizer, graph }: ModelFolder, seed: number, room: number): Int32Array[] {
  const random = seededRandom(seed)
  const special = new Set(tokenizer.specialTokenIds)
  const first = tokenizer.encode('', { addSpecialTokens: true })
  const token = (): number => {
    for (let tries = 0; ; tries++) {
      const id = Math.floor(random() * graph.vocabSize)
      // A vocabulary of special tokens only would have no end.
      if (!special.has(id) || tries > 1000) return id
    }
  }
  return BUILT_IN_LENGTHS.map((length) => {
    const wanted = Math.max(1, Math.min(length, room))
    const tokens = Int32Array.from({ length: wanted }, token)
    tokens.set(first.slice(0, wanted - 1))
    return tokens
  })
}

/**
 * @param given texts or token ids; undefined = the built-in prompts
 * @throws ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN, ERR_PROMPT_TOO_LONG
 */
export function toPrompts(
  model: ModelFolder,
  given: readonly (string | ArrayLike<number>)[] | undefined,
  outputs: number,
  seed: number,
): Int32Array[] {
  const { vocabSize, maxPositions } = model.graph
  const room = maxPositions - outputs
  if (room < 1) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"maxTokens" is ${outputs}, and the model's context ${maxPositions} tokens`)
  }
  if (given === undefined) return builtInPrompts(model, seed, room)
  return given.map((prompt, i) => {
    const name = `prompts[${i}]`
    const tokens =
      typeof prompt === 'string'
        ? Int32Array.from(model.tokenizer.encode(prompt, { addSpecialTokens: true, allowSpecial: true }))
        : toTokenArray(name, prompt, vocabSize)
    if (tokens.length === 0) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `"${name}" has no tokens: ${describeValue(prompt)}`)
    }
    if (tokens.length > room) {
      throw new TensorRTError(
        'ERR_PROMPT_TOO_LONG',
        `"${name}" has ${tokens.length} tokens, which with ${outputs} more do not fit into the context of ${maxPositions}`,
      )
    }
    return tokens
  })
}

/** Sizes of an executor that runs `together` of these prompts at once. */
export function sizesFor(
  prompts: readonly Int32Array[],
  outputs: number,
  pageSize: number,
  together: number,
): { maxSequences: number; numPages: number } {
  const maxSequences = Math.min(prompts.length, together)
  const longest = Math.max(...prompts.map(({ length }) => length)) + outputs
  return { maxSequences, numPages: maxSequences * Math.ceil(longest / pageSize) }
}

/** Ranges of prompts that both runners can take at once. @throws ERR_INVALID_ARGUMENT when one does not fit alone */
export function batchesOf(
  prompts: readonly Int32Array[],
  outputs: number,
  runners: readonly ForcedRunner[],
): { from: number; to: number }[] {
  const batches: { from: number; to: number }[] = []
  for (let from = 0; from < prompts.length; ) {
    let longest = 0
    let to = from
    for (; to < prompts.length; to++) {
      longest = Math.max(longest, prompts[to]!.length + outputs)
      if (runners.some((runner) => runner.capacity(longest) < to - from + 1)) break
    }
    if (to === from) {
      const sizes = runners.map(({ executor }) => describeSizes(executor)).join('; ')
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `A prompt of ${prompts[from]!.length} tokens and ${outputs} more does not fit: ${sizes}`)
    }
    batches.push({ from, to })
    from = to
  }
  return batches
}

function describeSizes({ info }: Executor): string {
  const { name, numPages, pageSize } = info as ExecutorInfo
  return `${name} has ${numPages} pages of ${pageSize} tokens`
}

/**
 * Runs prompts through the executor that is the reference; each goes on with its most probable tokens.
 *
 * @throws (as a rejection) ERR_STEP_FAILED where its own numbers are not finite, and what {@link ForcedRunner.run} throws
 */
export async function computeReferences(
  runner: ForcedRunner,
  prompts: readonly Int32Array[],
  outputs: number,
  signal: AbortSignal | undefined,
): Promise<PromptReference[]> {
  const references = prompts.map((prompt): PromptReference => {
    return { prompt, promptLogprobs: new Float64Array(prompt.length).fill(NaN), rows: [] }
  })
  let broken = false
  const sink = {
    onPrompt: (sequence: number, position: number, logprob: number): void => {
      references[sequence]!.promptLogprobs[position] = logprob
    },
    onLogits: (sequence: number, _: number, logits: Float32Array): number => {
      const row = greedyRow(logits)
      if (row === undefined) broken = true
      else references[sequence]!.rows.push(row)
      return row?.token ?? 0
    },
  }
  await runner.run(prompts, outputs, sink, signal)
  if (broken) {
    throw new TensorRTError('ERR_STEP_FAILED', `Logits of ${runner.executor.info.name}, the reference, are not finite`, {
      hint: 'the weights may be damaged',
    })
  }
  return references
}

/**
 * Runs the same tokens through the executor in question, and adds what differs.
 *
 * @param first index of `references[0]` in the comparison
 * @returns why a step failed; undefined when none did. Its positions count as invalid.
 * @throws (as a rejection) what {@link ForcedRunner.run} throws but a failed step
 */
export async function compareWith(
  runner: ForcedRunner,
  references: readonly PromptReference[],
  first: number,
  comparison: LogitComparison,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const outputs = references[0]!.rows.length
  let missing = references.length * outputs
  const sink = {
    onPrompt: (sequence: number, position: number, logprob: number): void => {
      comparison.addPrompt(first + sequence, position, logprob)
    },
    onLogits: (sequence: number, index: number, logits: Float32Array): number => {
      missing--
      comparison.addRow(first + sequence, index, logits)
      return references[sequence]!.rows[index]!.token
    },
  }
  const prompts = references.map(({ prompt }) => prompt)
  try {
    await runner.run(prompts, outputs, sink, signal)
    return undefined
  } catch (error) {
    // That its numbers are not finite says all of the engine, and nothing of the verification.
    if (!(error instanceof TensorRTError) || error.code !== 'ERR_STEP_FAILED') throw error
    comparison.addInvalid(missing)
    return error.message
  }
}
