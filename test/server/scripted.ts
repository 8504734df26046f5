/** A server over an executor that says what it is told to: for what no small model can be made to write. */
import { HashExecutor } from '../../examples/custom-executor/hash_executor'
import { ChatTemplate, LLM, Tokenizer } from '../../lib'
import { type StepResult, StepFlag, type StepView } from '../../lib/scheduler'
import { createServer, type ServerOptions } from '../../lib/server'
import { readJson } from '../unit/text/fixtures'

const tokenizerJson = readJson('models', 'tiny-storyteller', 'tokenizer.json')
const tokenizerConfig = readJson('models', 'tiny-storyteller', 'tokenizer_config.json')
const FIRST_ADDED = 4096
/** Enough for any marker of these tests, as in the models' own vocabularies. */
const SPECIAL = ['[TOOL_CALLS]', '[ARGS]', '<|python_tag|>']

const PLAIN = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }

/** Samples the tokens of a script in place of those of its model. The script is looked at when a request begins. */
class ScriptedExecutor extends HashExecutor {
  script: Int32Array = new Int32Array(0)
  readonly prompts: Int32Array[] = []
  private readonly scripts = new Map<number, Int32Array>()

  override openSlot(init: Parameters<HashExecutor['openSlot']>[0]): void {
    super.openSlot(init)
    this.scripts.set(init.slot, this.script)
    this.prompts.push(init.prompt.slice())
  }

  protected override run(step: StepView): StepResult {
    const result = super.run(step)
    let at = 0
    for (const sequence of step.sequences) {
      if ((sequence.flags & StepFlag.SAMPLE) === 0) continue
      const slot = this.slots.get(sequence.slot)!
      slot.last = this.scripts.get(sequence.slot)![slot.sampled - 1] ?? 0
      result.tokens[at++] = slot.last
    }
    return result
  }
}

export interface ScriptedServer {
  url: string
  failures: unknown[]
  /** Answers to come, in their order. */
  say(...answers: string[]): void
  /** Text of the latest prompt, special tokens and all. */
  readonly lastPrompt: string
  close(): Promise<void>
}

export async function startScripted(template: string, options: ServerOptions = {}): Promise<ScriptedServer> {
  const special = SPECIAL.map((content, i) => ({
    ...PLAIN,
    id: FIRST_ADDED + i,
    content,
  }))
  const tokenizer = new Tokenizer({ ...tokenizerJson, added_tokens: [...tokenizerJson.added_tokens, ...special] }, tokenizerConfig)
  const executor = new ScriptedExecutor({ vocabSize: FIRST_ADDED + SPECIAL.length, maxPositions: 2048, numPages: 2048, maxSlots: 8, maxStepTokens: 512 })
  const [end] = tokenizer.encode('<|end|>', { addSpecialTokens: false, allowSpecial: true })
  const llm = LLM.fromExecutor(executor, { tokenizer, chatTemplate: new ChatTemplate(template), eosTokenIds: [end!], prefixCache: false })
  const failures: unknown[] = []
  const server = createServer(llm, { modelName: 'scripted', onError: (error) => failures.push(error), ...options })
  const { url } = await server.listen({ port: 0 })
  const answers: Int32Array[] = []
  const open = executor.openSlot.bind(executor)
  executor.openSlot = (init) => {
    executor.script = answers.shift() ?? Int32Array.of(end!)
    open(init)
  }
  return {
    url,
    failures,
    say: (...texts) => {
      for (const text of texts) answers.push(Int32Array.from([...tokenizer.encode(text, { addSpecialTokens: false, allowSpecial: true }), end!]))
    },
    get lastPrompt() {
      return tokenizer.decode(executor.prompts.at(-1)!)
    },
    close: async () => {
      await server.close()
      await llm.close()
    },
  }
}
