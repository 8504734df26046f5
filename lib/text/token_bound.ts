interface Step {
  readonly type?: unknown
  readonly [key: string]: unknown
}

function steps(config: unknown, children: string): Step[] {
  if (typeof config !== 'object' || config === null) return []
  const step = config as Step
  if (step.type !== 'Sequence') return [step]
  return ((step[children] as unknown[] | undefined) ?? []).flatMap((child) => steps(child, children))
}

function keepsLength(normalizer: Step): boolean {
  if (normalizer.type === 'Prepend') return true
  const pattern = (normalizer['pattern'] as { String?: unknown } | undefined)?.String
  const content = normalizer['content']
  return (
    normalizer.type === 'Replace' &&
    typeof pattern === 'string' &&
    typeof content === 'string' &&
    content.length >= pattern.length
  )
}

function keepsText(preTokenizer: Step): boolean {
  if (preTokenizer.type === 'Split') return preTokenizer['behavior'] !== 'Removed' && preTokenizer['invert'] !== true
  return ['ByteLevel', 'Digits', 'Punctuation', 'Metaspace'].includes(preTokenizer.type as string)
}

/**
 * Most UTF-16 units of a text that one token can stand for, read off a tokenizer.json. It bounds the number of a text's
 * tokens from below without encoding it. Infinity where the tokenizer may drop or shrink text, so that there is no such
 * bound.
 */
export function longestToken(json: Readonly<Record<string, unknown>>, tokens: Iterable<string | undefined>): number {
  const decoder = steps(json['decoder'], 'decoders')
  const covers = decoder.some(({ type }) => type === 'ByteLevel' || type === 'ByteFallback')
  const added = (json['added_tokens'] ?? []) as { lstrip?: unknown; rstrip?: unknown }[]
  if (
    !covers ||
    !steps(json['normalizer'], 'normalizers').every(keepsLength) ||
    !steps(json['pre_tokenizer'], 'pretokenizers').every(keepsText) ||
    added.some((token) => token.lstrip === true || token.rstrip === true)
  ) {
    return Number.POSITIVE_INFINITY
  }
  let longest = 1
  for (const token of tokens) if (token !== undefined && token.length > longest) longest = token.length
  return longest
}
