/** Executors from their start on: who hears their results, and whether they work. */
import { TensorRTError } from '../errors'
import {
  type Executor,
  GREEDY_SAMPLING,
  STEP_HEADER_INTS,
  STEP_SEQUENCE_INTS,
  STEP_VERSION,
  StepFlag,
  type StepResult,
} from '../scheduler'
import { closeQuietly } from './death'
import { checkExecutor } from './validate'

/** An executor is started once, but those who listen change. Without a listener its results go nowhere. */
export class StartedExecutor {
  listener: ((result: StepResult) => void) | undefined

  /** @throws what its `start` throws */
  constructor(readonly executor: Executor) {
    executor.start((result) => this.listener?.(result))
  }
}

/**
 * What `create` makes, if it can run the model that `vocabSize` stands for.
 * @throws (as a rejection) what making it throws; ERR_INVALID_ARGUMENT for what is no executor, or one of another vocabulary,
 * as tokens would not mean the same
 */
export async function createLike(vocabSize: number, create: () => Promise<Executor>, what: string): Promise<Executor> {
  const executor = await create()
  checkExecutor(what, executor)
  const found = executor.info.vocabSize
  if (found === vocabSize) return executor
  void closeQuietly(executor)
  throw new TensorRTError(
    'ERR_INVALID_ARGUMENT',
    `The executor that was to take over has a vocabulary of ${found} tokens, not ${vocabSize}`,
  )
}

/**
 * Runs a step of one token, as a device that has failed before is not to be trusted because it took a model.
 * @throws (as a rejection) what the executor throws or its result says; ERR_TIMEOUT without a result in time
 */
export async function probe(started: StartedExecutor, timeoutMs: number): Promise<void> {
  const { executor } = started
  let timer: NodeJS.Timeout | undefined
  const prompt = Int32Array.of(0)
  try {
    const result = await new Promise<StepResult>((resolve, reject) => {
      started.listener = resolve
      timer = setTimeout(() => {
        reject(new TensorRTError('ERR_TIMEOUT', `A step of one token did not end within ${timeoutMs} ms`))
      }, timeoutMs)
      executor.openSlot({ slot: 0, sampling: GREEDY_SAMPLING, prompt, output: new Int32Array(0) })
      executor.submit(oneTokenStep())
    })
    const { error, tokens } = result
    if (error !== undefined) throw new TensorRTError(error.code, error.message)
    if (tokens.length !== 1 || !(tokens[0]! >= 0 && tokens[0]! < executor.info.vocabSize)) {
      throw new TensorRTError('ERR_EXECUTION_FAILED', 'A step of one token sampled none of the vocabulary')
    }
    executor.closeSlot(0)
  } finally {
    clearTimeout(timer)
    started.listener = undefined
  }
}

/** Token 0 at position 0 of slot 0, in page 0. */
function oneTokenStep(): Int32Array {
  const step = new Int32Array(STEP_HEADER_INTS + STEP_SEQUENCE_INTS + 2)
  step.set([STEP_VERSION, 0, 1, 1, 1, 0])
  step.set([0, 1, 0, 1, StepFlag.SAMPLE], STEP_HEADER_INTS)
  return step
}
