import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Tokenizer } from '../../../lib/text'

const root = join(__dirname, '..', '..', '..')

export function readJson(...path: string[]): any {
  return JSON.parse(readFileSync(join(root, ...path), 'utf8'))
}

export const storyTokenizerJson = readJson('models', 'tiny-storyteller', 'tokenizer.json')
export const storyTokenizerConfig = readJson('models', 'tiny-storyteller', 'tokenizer_config.json')

export function storyTokenizer(): Tokenizer {
  return new Tokenizer(storyTokenizerJson, storyTokenizerConfig)
}

function added(id: number, content: string, more: object = {}): object {
  return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true, ...more }
}

/** A tokenizer.json of the Llama 2 kind: SentencePiece BPE with byte fallback, a metaspace normaliser and a stripping decoder. */
export function llama2TokenizerJson(): any {
  const vocab: Record<string, number> = { '<unk>': 0, '<s>': 1, '</s>': 2 }
  for (let byte = 0; byte < 256; byte++) {
    vocab[`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`] = 3 + byte
  }
  const letters = ['▁', ...'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?<>/|[]_é東'].map((c) => c)
  const words = ['▁▁', '▁t', '▁th', '▁the', 'in', 'ing', '▁a', 'or', 'ld', '▁w', '▁wor', '▁world']
  const merges = ['▁ ▁', '▁ t', '▁t h', '▁th e', 'i n', 'in g', '▁ a', 'o r', 'l d', '▁ w', '▁w or', '▁wor ld']
  for (const token of [...letters, ...words]) vocab[token] ??= Object.keys(vocab).length
  return {
    version: '1.0',
    added_tokens: [added(0, '<unk>'), added(1, '<s>'), added(2, '</s>')],
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 0 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: { type: 'BPE', dropout: null, unk_token: '<unk>', fuse_unk: true, byte_fallback: true, vocab, merges },
  }
}

export const llama2TokenizerConfig = { bos_token: { content: '<s>' }, eos_token: '</s>', unk_token: '<unk>' }

export function llama2Tokenizer(): Tokenizer {
  return new Tokenizer(llama2TokenizerJson(), llama2TokenizerConfig)
}

/** A Unigram tokenizer of the T5 kind, whose vocabulary spells its own control tokens, with a Metaspace decoder. */
export function unigramTokenizer(): Tokenizer {
  const pieces = ['<unk>', '</s>', '▁', ...'abcdefgh</s>!', '▁abc', 'de', '▁▁']
  const vocab = [...new Set(pieces)].map((piece, index) => [piece, -1 - index / 10])
  return new Tokenizer(
    {
      added_tokens: [added(0, '<unk>'), added(1, '</s>')],
      normalizer: null,
      pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
      post_processor: null,
      decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
      model: { type: 'Unigram', unk_id: 0, vocab },
    },
    { eos_token: '</s>', unk_token: '<unk>' },
  )
}

/** The demo model's tokenizer with more added tokens, as chat models have them. */
export function storyTokenizerWith(...tokens: (readonly [content: string, more: object])[]): Tokenizer {
  const next = 4096
  return new Tokenizer(
    {
      ...storyTokenizerJson,
      added_tokens: [...storyTokenizerJson.added_tokens, ...tokens.map(([c, m], i) => added(next + i, c, m))],
    },
    storyTokenizerConfig,
  )
}
