import { describe, expect, it } from 'vitest'
import { Choice, type ChoiceOptions } from '../../../lib/llm/choice'
import { StopSet } from '../../../lib/text'
import { storyTokenizer } from '../text/fixtures'
import fc from '../../support/fast_check'

const tokenizer = storyTokenizer()
const END = 5
const encode = (text: string): number[] => tokenizer.encode(text, { addSpecialTokens: false })

function choice(options: Partial<ChoiceOptions> = {}): Choice {
  return new Choice(0, {
    tokenizer,
    skipSpecialTokens: true,
    continuation: true,
    stops: new StopSet([]),
    includeStop: false,
    minTokens: 0,
    logprobs: false,
    ...options,
  })
}

/** Pushes tokens as the scheduler would report them, the last with `finish`; stops where the choice has ended. */
function run(subject: Choice, tokens: readonly number[], finish: 'stop' | 'length' = 'length'): Choice {
  tokens.some((token, i) => subject.push(token, null, i === tokens.length - 1 ? finish : null))
  return subject
}

describe('a choice', () => {
  it('has the text of its tokens', () => {
    const text = 'Zoë found a 🦊 in 東京.'
    expect(run(choice(), encode(text)).result()).toEqual({
      index: 0,
      text,
      tokens: encode(text),
      finishReason: 'length',
    })
  })

  it('leaves an ending token out of the text, and keeps it in the tokens', () => {
    const subject = run(choice(), [...encode('The end.'), END], 'stop')
    expect(subject.result()).toMatchObject({
      text: 'The end.',
      finishReason: 'stop',
      stop: END,
      tokens: [...encode('The end.'), END],
    })
  })

  it('leaves the text of an ordinary stop token out, or keeps it', () => {
    const tokens = encode('one two')
    const last = tokens.at(-1)!
    expect(run(choice(), tokens, 'stop').result()).toMatchObject({
      text: tokenizer.decode(tokens.slice(0, -1)),
      stop: last,
    })
    expect(run(choice({ includeStop: true }), tokens, 'stop').result()).toMatchObject({ text: 'one two', stop: last })
  })

  it('shows special tokens where asked', () => {
    expect(
      run(choice({ skipSpecialTokens: false, includeStop: true }), [...encode('Hi'), END], 'stop').result().text,
    ).toBe('Hi<|end|>')
  })

  it('ends at a stop string, with the tokens up to it', () => {
    const tokens = encode('Once upon a time there was a fox')
    const subject = choice({ stops: new StopSet(['time']) })
    const ended = tokens.findIndex((token) => subject.push(token, null, null))
    expect(tokenizer.decode(tokens.slice(0, ended + 1))).toMatch(/time$/)
    expect(subject.result()).toMatchObject({
      text: 'Once upon a ',
      finishReason: 'stop',
      stop: 'time',
      tokens: tokens.slice(0, ended + 1),
    })
  })

  it('says stop where the last token allowed completes a stop string', () => {
    const subject = run(choice({ stops: new StopSet(['fox']) }), encode('a brave fox'), 'length')
    expect(subject.result()).toMatchObject({ text: 'a brave ', finishReason: 'stop', stop: 'fox' })
  })

  it('finds a stop string that only the flush of half a character completes', () => {
    const bytes = encode('東').slice(0, 1)
    expect(run(choice({ stops: new StopSet(['\ufffd']) }), bytes).result()).toMatchObject({
      text: '',
      finishReason: 'stop',
      stop: '\ufffd',
    })
    expect(run(choice(), bytes).result()).toMatchObject({ text: '\ufffd', finishReason: 'length' })
  })

  it('gives back what was held for a stop string that did not come', () => {
    const subject = choice({ stops: new StopSet(['fox hunt']) })
    for (const token of encode('a fox')) subject.push(token, null, null)
    expect(subject.take()!.text).toBe('a ')
    subject.end('length')
    expect(subject.take()).toEqual({ index: 0, text: 'fox', tokens: [], finishReason: 'length' })
  })

  it('heeds stop strings only after minTokens', () => {
    const [fox, ...rest] = encode(' fox')
    expect(rest).toEqual([])
    for (const minTokens of [0, 1, 2, 7]) {
      const subject = choice({ stops: new StopSet(['fox']), minTokens })
      while (!subject.push(fox!, null, null));
      expect(subject.result()).toMatchObject({
        text: `${' fox'.repeat(minTokens)} `,
        finishReason: 'stop',
        stop: 'fox',
      })
      expect(subject.tokens).toHaveLength(minTokens + 1)
    }
  })

  it('heeds a stop string that begins before minTokens and ends after', () => {
    const subject = choice({ stops: new StopSet(['fox fo']), minTokens: 2 })
    const [fox] = encode(' fox')
    while (!subject.push(fox!, null, null));
    // The one that begins at the first token is complete too early, and the one that begins at the second is not.
    expect(subject.result()).toMatchObject({ text: ' fox ', tokens: [fox, fox, fox], stop: 'fox fo' })
  })

  it('has no text without a tokenizer', () => {
    expect(run(choice({ tokenizer: undefined }), [1, 2, 3]).result()).toMatchObject({ text: '', tokens: [1, 2, 3] })
  })

  it('gives what is new as one chunk, however it is cut', () => {
    const tokens = encode('Zoë and 🦊🚀 went to 東京, <b>there</b>, all day long. 👩‍👩‍👧')
    const row = {
      sequence: 0,
      position: 0,
      logprob: -1,
      rank: 1,
      topIds: Int32Array.of(7),
      topLogprobs: Float32Array.of(-0.5),
    }
    fc.assert(
      fc.property(fc.array(fc.boolean(), { minLength: tokens.length, maxLength: tokens.length }), (takes) => {
        const subject = choice({ logprobs: true, stops: new StopSet(['all night']) })
        const chunks = tokens.flatMap((token, i) => {
          subject.push(token, { ...row, token }, i === tokens.length - 1 ? 'length' : null)
          const chunk = takes[i] ? subject.take() : undefined
          return chunk === undefined ? [] : [chunk]
        })
        const last = subject.take()
        if (last !== undefined) chunks.push(last)
        const result = subject.result()
        expect(chunks.map((chunk) => chunk.text).join('')).toBe(result.text)
        expect(chunks.flatMap((chunk) => chunk.tokens)).toEqual(tokens)
        expect(chunks.flatMap((chunk) => chunk.logprobs!)).toEqual(result.logprobs)
        expect(result.logprobs![0]).toEqual({
          token: tokens[0],
          logprob: -1,
          rank: 1,
          top: [{ token: 7, logprob: -0.5 }],
        })
        expect(chunks.map((chunk) => chunk.finishReason)).toEqual([...chunks.slice(1).map(() => undefined), 'length'])
        expect(subject.take()).toBeUndefined()
      }),
    )
  })
})
