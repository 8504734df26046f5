/**
 * When queued prompts will have their first token: the scheduler's next steps, played through on what is known of their
 * times. Pure arithmetic, some microseconds a call.
 */

/** What runs the model, as a forecast sees it. Times are milliseconds. */
export interface Machine {
  /** Of a step of so many tokens. */
  stepMs(tokens: number): number
  /** Tokens that a step may have which so many sequences wait for that decode. */
  stepTokens(decodeRows: number): number
  /** Sequences that run at once. */
  maxRunning: number
  /** Token places of the KV cache that are free. */
  freeTokens: number
  /** Until a step that is planned now begins: what is left of the steps in flight. */
  inFlightMs: number
  /** Steps in flight; each gives a token to each sequence that decodes. */
  stepsInFlight: number
}

/** Sequences of one request that decode. */
export interface Decoding {
  rows: number
  /** Tokens that each is still expected to make. */
  left: number
  /** Token places that they hold. */
  held: number
  /** They give way to whatever is forecast. */
  yields: boolean
}

/** A request without a first token, in the order in which prompts run. */
export interface Prompt {
  rows: number
  /** Tokens of the prompt that no step was given yet. */
  left: number
  /** Tokens of the whole prompt. */
  size: number
  /** Tokens that each row is expected to make. */
  output: number
}

export interface Forecast {
  /** Per prompt, ms from now to its first token; Infinity beyond the horizon. */
  firstTokenMs: number[]
  /** Rows that decode once the last of them does. */
  rows: number
}

/** A sequence that has ended is in the step that was planned before that was known. */
const WASTED = 1

class Departures {
  private readonly rows = new Map<number, { rows: number; held: number }>()
  private readonly steps: number[] = []

  add(step: number, rows: number, held: number): void {
    const at = this.rows.get(step)
    if (at !== undefined) {
      at.rows += rows
      at.held += held
      return
    }
    this.rows.set(step, { rows, held })
    let i = this.steps.length
    while (i > 0 && this.steps[i - 1]! < step) i--
    this.steps.splice(i, 0, step)
  }

  /** The next step at whose begin sequences have left. */
  get next(): number | undefined {
    return this.steps.at(-1)
  }

  take(): { rows: number; held: number } {
    const step = this.steps.pop()!
    return this.rows.get(step)!
  }
}

export function forecast(
  machine: Machine,
  decoding: readonly Decoding[],
  prompts: readonly Prompt[],
  horizonMs: number,
): Forecast {
  const departures = new Departures()
  const firstTokenMs = prompts.map(() => Infinity)
  const left = prompts.map((prompt) => prompt.left)
  let rows = 0
  let yielding = 0
  let free = machine.freeTokens
  for (const of of decoding) {
    rows += of.rows
    if (of.yields) yielding += of.rows
    else departures.add(Math.max(Math.ceil(of.left) - machine.stepsInFlight + WASTED, 1), of.rows, of.held)
  }
  let time = machine.inFlightMs
  let head = 0
  let started = -1

  const begin = (index: number, step: number): void => {
    const { rows: more, output, size } = prompts[index]!
    firstTokenMs[index] = time
    rows += more
    departures.add(step + Math.ceil(output) - 1 + WASTED, more, size + output * more)
    head = index + 1
  }
  // What the steps in flight complete.
  while (head < prompts.length && left[head] === 0) {
    started = head
    begin(head, 0)
  }

  for (let step = 0; head < prompts.length && time <= horizonMs; step++) {
    for (let next = departures.next; next !== undefined && next <= step; next = departures.next) {
      const gone = departures.take()
      rows -= gone.rows
      free += gone.held
    }
    const budget = machine.stepTokens(rows) - rows
    let used = 0
    let done = head
    for (let i = head; i < prompts.length && used < budget; i++) {
      const prompt = prompts[i]!
      if (i > started) {
        while (yielding > 0 && rows + prompt.rows > machine.maxRunning) {
          yielding--
          rows--
        }
        const fits = prompt.size <= free && rows + (i - done) + prompt.rows <= machine.maxRunning
        // A machine that is empty takes whatever comes.
        if (!fits && rows + (i - done) > 0) break
        started = i
        free -= prompt.size
      }
      const take = Math.min(left[i]!, budget - used)
      left[i]! -= take
      used += take
      if (left[i]! > 0) break
      done = i + 1
    }
    if (used === 0) {
      // Nothing but decode steps of one length until somebody leaves.
      const next = departures.next
      if (next === undefined) break
      time += (next - step) * machine.stepMs(Math.max(rows, 1))
      free -= (next - step) * rows
      step = next - 1
      continue
    }
    time += machine.stepMs(rows + used)
    free -= rows
    for (let i = head; i < done; i++) begin(i, step + 1)
  }
  return { firstTokenMs, rows }
}
