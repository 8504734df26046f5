import { TensorRTError } from '../errors'
import { type LogprobRow, NOTHING_ALLOWED, type StepResult } from './executor'
import type { LiveRequests } from './live_requests'
import { type EventBuffer, type FinishReason, NO_TOKEN } from './output'
import type { SchedulerLimits } from './request'
import type { Residency } from './residency'
import { type Sequence, SequenceState } from './sequence'
import { spreadFailure } from './step_failure'
import type { StepRecord } from './step_record'
import type { SchedulerCounters } from './types'

/** What the result of a step means for the sequences that have rows in it. */
export class ResultAccounts {
  constructor(
    private readonly residency: Residency,
    private readonly limits: SchedulerLimits,
    private readonly counters: SchedulerCounters,
    private readonly maxRetries: number,
    // An object, not a function that holds one: bench/server/simulation.ts clones a scheduler with all it is made of.
    private readonly requests: Pick<LiveRequests, 'end'>,
  ) {}

  /** The step ran: hands out its tokens, log-probabilities and hidden states, and ends what is complete. */
  takeTokens(record: StepRecord, result: StepResult, events: EventBuffer): void {
    const { residency } = this
    const { logprobs } = result
    let sampleAt = 0
    let hiddenAt = 0
    let logprobAt = 0
    for (let row = 0; row < record.rows; row++) {
      const seq = record.sequences[row]!
      const samples = record.samplesRow(row)
      const token = samples ? result.tokens[sampleAt++]! : NO_TOKEN
      const hiddenBegin = hiddenAt
      if (record.hiddens > 0) hiddenAt += record.hiddensOf(row) * this.limits.hiddenSize!
      const live = record.dropped[row] === 0
      if (samples && live) seq.pending--
      if (!live || seq.finished) {
        this.counters.wastedRows++
        while (logprobAt < logprobs.length && logprobs[logprobAt]!.sequence === row) logprobAt++
        continue
      }
      const hidden = hiddenAt === hiddenBegin ? null : record.takeHidden(row, result.hidden!.subarray(hiddenBegin, hiddenAt))
      let promptRows: LogprobRow[] | null = null
      let tokenRow: LogprobRow | null = null
      for (; logprobAt < logprobs.length && logprobs[logprobAt]!.sequence === row; logprobAt++) {
        const reported = logprobs[logprobAt]!
        if (reported.position >= seq.promptLength) {
          tokenRow = reported
        } else if (reported.position >= seq.nextPromptLogprob) {
          // A recomputed prompt reports again what was reported before it was preempted.
          seq.nextPromptLogprob = reported.position + 1
          ;(promptRows ??= []).push(reported)
        }
      }
      if (samples && lacksLogprobs(seq, token, tokenRow)) {
        this.fail(seq, new TensorRTError('ERR_STEP_FAILED', 'The executor reported no log-probabilities, which the request asks for'), events)
        continue
      }
      let finish: FinishReason | null = null
      if (samples) {
        if (seq.constraint !== null && token === NOTHING_ALLOWED) {
          this.fail(seq, new TensorRTError('ERR_INVALID_ARGUMENT', 'The token mask leaves no token to sample'), events)
          continue
        }
        seq.append(token)
        if (seq.state === SequenceState.RUNNING) residency.pages.publish(seq)
        // Before minTokens a stop token is what a mask has left.
        const mayStop = seq.outputLength > seq.request.sampling.minTokens || seq.constraint !== null
        if (mayStop && seq.stopsAt(token)) finish = 'stop'
        else if (seq.outputLength >= seq.maxTokens) finish = 'length'
      } else if (seq.maxTokens === 0 && record.cachedOf(row) + record.tokensOf(row) === seq.promptLength) {
        finish = 'length'
      }
      if (finish !== null) {
        this.requests.end(seq, 'sequencesFinished')
      } else if (seq.constraint !== null && samples) {
        const error = residency.follow(seq, token)
        if (error !== undefined) {
          this.fail(seq, error, events)
          continue
        }
      }
      if (samples || finish !== null || promptRows !== null || hidden !== null)
        events.push(seq, token, tokenRow, promptRows, finish, null, hidden)
    }
  }

  /**
   * The step failed: its sequences run again or fail, and so do those of later steps that read what it wrote.
   * @param later the steps in flight after it, in order
   */
  takeFailure(
    record: StepRecord,
    error: NonNullable<StepResult['error']>,
    later: readonly StepRecord[],
    now: number,
    events: EventBuffer,
  ): void {
    const { residency, counters } = this
    counters.stepFailures++
    const damaged = spreadFailure(record, later, residency.pages.blocks, record.stepId)
    for (let row = 0; row < record.rows; row++) {
      const seq = record.sequences[row]!
      const dropped = record.dropped[row] !== 0
      if (!dropped && record.samplesRow(row)) seq.pending--
      if (seq.finished || dropped) {
        counters.wastedRows++
      } else if (error.retryable && seq.failures < this.maxRetries) {
        seq.failures++
        counters.retries++
        damaged.push(seq)
      } else {
        const cause = new TensorRTError(error.code, error.message)
        const again = seq.failures > 0 ? ` (after ${seq.failures} retries)` : ''
        this.fail(seq, new TensorRTError('ERR_STEP_FAILED', `${error.message}${again}`, { cause }), events)
      }
    }
    for (const seq of damaged) if (seq.state === SequenceState.RUNNING) residency.suspend(seq, now)
    residency.sweep()
  }

  private fail(seq: Sequence, error: TensorRTError, events: EventBuffer): void {
    this.requests.end(seq, 'sequencesFailed')
    events.push(seq, NO_TOKEN, null, null, null, error)
  }
}

/** Whether something of what a request asks for did not come by the time of a sampled token. */
function lacksLogprobs(seq: Sequence, token: number, tokenRow: LogprobRow | null): boolean {
  if (token === NOTHING_ALLOWED) return false
  return (tokenRow === null && seq.request.sampling.logprobs >= 0) || seq.nextPromptLogprob < seq.promptLength
}
