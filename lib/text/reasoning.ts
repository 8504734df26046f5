/** Separates what a model thinks, between `<think>` and `</think>`, from its answer. */
import { TensorRTError } from '../errors'

/** Named as vLLM's `--reasoning-parser` names them. */
export type ReasoningFormatName = 'deepseek_r1' | 'qwen3'

export const REASONING_FORMATS: readonly ReasoningFormatName[] = ['deepseek_r1', 'qwen3']

export interface ReasoningOutput {
  reasoning: string
  content: string
}

export interface ReasoningParserOptions {
  /**
   * Whether the prompt has opened the reasoning already, see {@link promptOpensReasoning}. Default: true for `deepseek_r1`,
   * whose outputs may lack the tag, else false.
   */
  open?: boolean | undefined
}

/** What comes out does not depend on how the text was cut. */
export interface ReasoningParser {
  push(text: string): ReasoningOutput
  /** Ends the text: what was held back. Reasoning that was not closed stays reasoning. */
  end(): ReasoningOutput
}

const OPEN = '<think>'
const CLOSE = '</think>'

/** See `needsSpecialTokens`. */
export const REASONING_MARKERS: readonly string[] = [OPEN, CLOSE]

/**
 * Whether the end of a rendered prompt opens the reasoning of the answer to come (true), or closes it already, as Qwen3's
 * template does where `enable_thinking` is false (false); undefined where it does neither.
 */
export function promptOpensReasoning(prompt: string): boolean | undefined {
  const end = prompt.trimEnd()
  return end.endsWith(OPEN) ? true : end.endsWith(CLOSE) ? false : undefined
}

/** The format of a model whose chat template knows reasoning. */
export function detectReasoningFormat(chatTemplate: string): ReasoningFormatName | undefined {
  if (!chatTemplate.includes(CLOSE)) return undefined
  return chatTemplate.includes('<｜Assistant｜>') ? 'deepseek_r1' : 'qwen3'
}

/**
 * A parser for one output. The line breaks next to the tags belong to the tags, as in the templates that strip them
 * (Qwen3, DeepSeek-R1). Tags in the answer, and a second `<think>`, are ordinary text.
 * @throws ERR_INVALID_ARGUMENT for a name that is none of the formats
 */
export function createReasoningParser(name: ReasoningFormatName, options: ReasoningParserOptions = {}): ReasoningParser {
  if (!REASONING_FORMATS.includes(name)) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `There is no reasoning format "${String(name)}"`, {
      hint: `one of ${REASONING_FORMATS.join(', ')}`,
    })
  }
  const open = options.open ?? name === 'deepseek_r1'
  let state: 'start' | 'opened' | 'reasoning' | 'closed' | 'content' = 'start'
  /** White space at the start, or line breaks in the reasoning, with nothing but `tag` behind them so far. */
  let space = ''
  /** Beginning of a tag. */
  let tag = ''
  let output: ReasoningOutput = { reasoning: '', content: '' }

  const take = (): ReasoningOutput => {
    const taken = output
    output = { reasoning: '', content: '' }
    return taken
  }
  const release = (to: keyof ReasoningOutput): void => {
    output[to] += space + tag
    space = tag = ''
  }
  const reasoned = (unit: string): void => {
    if (CLOSE.startsWith(tag + unit)) {
      tag += unit
      if (tag !== CLOSE) return
      space = tag = ''
      state = 'closed'
      return
    }
    // Of the closing tag, only its first unit begins it anew.
    if (tag !== '') release('reasoning')
    if (unit === CLOSE[0]) tag = unit
    else if (unit === '\n') space += unit
    else {
      release('reasoning')
      output.reasoning += unit
    }
  }
  const start = (unit: string): void => {
    if (tag === '' && /\s/.test(unit)) {
      space += unit
      return
    }
    tag += unit
    if (tag === OPEN) {
      space = tag = ''
      state = 'opened'
    } else if (!OPEN.startsWith(tag)) {
      if (!open) {
        state = 'content'
        release('content')
        return
      }
      const text = space.replace(/^\n+/, '') + tag
      space = tag = ''
      state = 'reasoning'
      for (let i = 0; i < text.length; i++) reasoned(text[i]!)
    }
  }
  const feed = (unit: string): void => {
    if (state === 'start') start(unit)
    else if (state === 'reasoning') reasoned(unit)
    else if (unit !== '\n') {
      if (state === 'opened') {
        state = 'reasoning'
        reasoned(unit)
      } else {
        state = 'content'
        output.content += unit
      }
    }
  }
  return {
    push(text) {
      for (let i = 0; i < text.length; i++) {
        if (state === 'content') {
          output.content += text.slice(i)
          break
        }
        feed(text[i]!)
      }
      return take()
    },
    end() {
      release(state === 'start' && !open ? 'content' : 'reasoning')
      return take()
    },
  }
}
