import { TensorRTError } from '../errors'
import { validateChat, type ChatTemplate, type RenderGuard, type RenderInput, type RenderOptions } from './chat_template'
import type { ChatMessage, JsonValue } from './messages'
import { alternation, escapeRegExp } from './patterns'
import type { Tokenizer } from './tokenizer'

export interface EncodeChatOptions extends RenderOptions {
  /**
   * Whether special tokens spelt out inside a message (`<|end|>`) become their ids, as in transformers, which lets the
   * author of a message forge turns. Default false: they are ordinary text.
   */
  allowSpecial?: boolean | undefined
  /**
   * Most tokens to accept. A chat that is far too long is refused without the cost of encoding it. Default: no limit.
   */
  maxTokens?: number | undefined
}

export interface EncodedChat {
  /** The prompt as the template renders it. */
  readonly text: string
  readonly ids: number[]
}

const PRIVATE_USE: readonly (readonly [number, number])[] = [
  [0xe000, 0xf8ff],
  [0xf0000, 0xffffd],
]

/**
 * Replaces characters by private-use characters of the same length that appear nowhere else, and back. A template
 * cannot take a disguised special token for one of its own, while trimming, slicing, measuring and JSON leave the
 * disguise as it is.
 */
class Disguise {
  private readonly disguised = new Map<string, string>()
  private readonly revealed = new Map<string, string>()

  /** @param taken text whose characters are no stand-ins */
  constructor(private readonly taken: string) {}

  /** Disguises every character at which `pattern` matches. */
  hide(text: string, pattern: RegExp): string {
    return text.replace(pattern, (char) => {
      let standIn = this.disguised.get(char)
      if (standIn === undefined) {
        standIn = this.unused(char.length)
        this.disguised.set(char, standIn)
        this.revealed.set(standIn, char)
      }
      return standIn
    })
  }

  reveal(text: string): string {
    const pattern = alternation(this.revealed.keys(), 'g')
    return pattern ? text.replace(pattern, (standIn) => this.revealed.get(standIn)!) : text
  }

  private unused(length: number): string {
    const [from, to] = PRIVATE_USE[length - 1]!
    // One pass for all: a search for each would take as many as there are characters to try.
    const used = new Set<number>()
    for (let i = 0; i < this.taken.length; i++) {
      const code = this.taken.codePointAt(i)!
      if (code >= from && code <= to) used.add(code)
    }
    for (let code = from; code <= to; code++) {
      const char = String.fromCodePoint(code)
      if (!used.has(code) && !this.revealed.has(char)) return char
    }
    throw new TensorRTError('ERR_INVALID_ARGUMENT', 'The chat uses every private-use character of Unicode')
  }
}

/** Every string of a JSON value, keys included, replaced by what `replace` makes of it; the order is that of a walk. */
function mapStrings<T extends JsonValue>(value: T, replace: (text: string) => string): T {
  const walk = (item: JsonValue): JsonValue => {
    if (typeof item === 'string') return replace(item)
    if (Array.isArray(item)) return item.map(walk)
    if (typeof item === 'object' && item !== null) {
      return Object.fromEntries(Object.entries(item).map(([key, inner]) => [replace(key), walk(inner)]))
    }
    return item
  }
  return walk(value) as T
}

function mapInput(input: RenderInput, replace: (text: string) => string): RenderInput {
  return {
    ...input,
    messages: mapStrings(input.messages, replace),
    tools: mapStrings(input.tools, replace),
    documents: mapStrings(input.documents, replace),
    templateArgs: mapStrings(input.templateArgs, replace),
  }
}

function sameMatches(a: readonly { index: number }[], b: readonly { index: number }[]): boolean {
  return a.length === b.length && a.every((match, i) => match.index === b[i]!.index)
}

/**
 * Renders a chat and encodes it. By default only the template makes special tokens: one that a message spells out, in
 * whatever way it reaches the prompt, is ordinary text there, byte for byte what its author wrote. Where no message
 * spells one, the ids are those of transformers.
 *
 * The chat is rendered twice: as it is, and with the first characters of all special tokens disguised in everything but
 * the template. What is special in the second rendering is the template's own doing. A template that looks for such
 * characters itself (it parses `<think>`, say) renders the disguised chat differently, or refuses it; then only the
 * special tokens that are spelt out in full are disguised.
 *
 * @throws ERR_INVALID_ARGUMENT for bad messages, or with the template's own words where it raises an exception
 * @throws ERR_CHAT_TEMPLATE where there is no template, or it fails
 * @throws ERR_PROMPT_TOO_LONG where the prompt has more than `maxTokens` tokens
 */
export function encodeChat(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  messages: readonly ChatMessage[],
  options: EncodeChatOptions = {},
): EncodedChat {
  return encodeChatInput(tokenizer, template, validateChat(messages, options), options)
}

/** The part of {@link EncodeChatOptions} that is no input of the template. */
export interface EncodeInputOptions extends Pick<EncodeChatOptions, 'allowSpecial' | 'maxTokens'> {
  /** What it throws ends the encoding, and is thrown. */
  guard?: RenderGuard | undefined
}

/**
 * Same as {@link encodeChat}, for input that {@link validateChat} made.
 * @internal
 */
export function encodeChatInput(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  input: RenderInput,
  options: EncodeInputOptions = {},
): EncodedChat {
  const { maxTokens, guard } = options
  const text = template.renderInput(input, guard)
  guard?.(text)
  // Before all that takes time in proportion to the text.
  tokenizer.assertMayFit(text, maxTokens)
  const asTransformers = (): EncodedChat => {
    return { text, ids: tokenizer.encode(text, { addSpecialTokens: false, maxTokens }) }
  }
  const specials = tokenizer.specialContents
  if ((options.allowSpecial ?? false) || specials.length === 0) return asTransformers()

  const strings: string[] = []
  mapInput(input, (string) => {
    strings.push(string)
    return string
  })
  // One text of them all, so that a special token spelt across two strings is found too.
  const joined = strings.join('')
  const firstChars = alternation(
    specials.map((content) => String.fromCodePoint(content.codePointAt(0)!)),
    'giu',
  )!
  if (joined.search(firstChars) < 0) return asTransformers()

  const renderHidden = (pattern: RegExp) => {
    const disguise = new Disguise(joined + text)
    const hidden = disguise.hide(joined, pattern)
    let offset = 0
    const rendered = template.renderInput(mapInput(input, (string) => hidden.slice(offset, (offset += string.length))), guard)
    const reveal = (part: string) => disguise.reveal(part)
    return { rendered, reveal, text: reveal(rendered) }
  }
  const renderUnnoticed = (pattern: RegExp) => {
    try {
      const hidden = renderHidden(pattern)
      return hidden.text === text ? hidden : undefined
    } catch {
      // One that has had enough says so again.
      guard?.()
      return undefined
    }
  }
  const spelt = new RegExp(`(?=${specials.map(escapeRegExp).join('|')})[^]`, 'giu')
  const hidden = renderUnnoticed(firstChars) ?? renderHidden(spelt)
  if (hidden.text === text && sameMatches(tokenizer.findSpecial(hidden.rendered), tokenizer.findSpecial(text))) {
    return asTransformers()
  }
  return { text: hidden.text, ids: tokenizer.encodeDisguised(hidden.rendered, hidden.reveal, maxTokens) }
}
