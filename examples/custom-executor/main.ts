/** Three prompts through the scheduler and an executor of one's own: the whole loop, in the open. */
import { type GenerationRequest, Scheduler, type SequenceEvents } from '../../lib/scheduler'
import { HashExecutor } from './hash_executor'

const executor = new HashExecutor()
const scheduler = new Scheduler(executor.info)

function submit(): void {
  for (let step = scheduler.plan(performance.now()); step !== null; step = scheduler.plan(performance.now())) {
    for (const slot of step.close) executor.closeSlot(slot)
    for (const init of step.open) executor.openSlot(init)
    executor.submit(step.packed)
  }
}

function report(events: SequenceEvents): void {
  for (let i = 0; i < events.count; i++) {
    const seq = events.sequences[i]!
    if (events.errors[i]) console.log(`${seq.id}: ${events.errors[i]!.message}`)
    else if (events.finish[i]) console.log(`${seq.id}: ${[...seq.output].join(' ')} (${events.finish[i]})`)
  }
}

executor.start((result) => {
  const events = scheduler.complete(result, performance.now())
  // The next step first: it runs while the events are dealt with.
  submit()
  report(events)
  if (!scheduler.hasWork) void executor.close()
})

const sampling: GenerationRequest['sampling'] = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0,
  logprobs: -1,
  promptLogprobs: -1,
  minTokens: 0,
}
for (const [id, prompt] of Object.entries({ one: [1], two: [1, 2], three: [1, 2, 3] })) {
  scheduler.add({ id, prompt: Int32Array.from(prompt), sampling, maxTokens: 10 }, performance.now())
}
submit()
