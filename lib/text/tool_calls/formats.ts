/** The formats in which models write tool calls, each named as vLLM's `--tool-call-parser` names it. */
import { callList, callObject } from './json_calls'
import { type Cursor, END, type Parse } from './machine'
import { PythonLiteral } from './python_literal'

export interface ToolCallFormat {
  /** What tells a call from text; tokens of their own in most vocabularies. */
  readonly markers: readonly string[]
  readonly parse: (cursor: Cursor) => Parse
  /** Ids of calls: a prefix, and so many letters or digits. */
  readonly idPrefix: string
  readonly idLength: number
}

const NAME = /[\w.-]/

export const MISTRAL_CALLS = '[TOOL_CALLS]'
/** Between name and arguments, from version 11 of Mistral's tokenizers. */
export const MISTRAL_ARGUMENTS = '[ARGS]'

/** `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5, Qwen 3. */
function* hermes(cursor: Cursor): Parse {
  cursor.code = yield
  while ((yield* cursor.marker(['<tool_call>'])) !== undefined) {
    yield* cursor.spaces()
    let good = cursor.is('{')
    if (!good) cursor.giveUpUnit()
    // Some models put several calls between two tags.
    while (good && cursor.is('{')) {
      good = yield* callObject(cursor, true)
      if (good) yield* cursor.spaces()
      else cursor.giveUp()
    }
    if (good && (yield* cursor.literal('</tool_call>'))) cursor.raw = ''
  }
}

/**
 * `{"name": ..., "parameters": {...}}` at the beginning of the output, more of them after semicolons, or anywhere after
 * `<|python_tag|>`: Llama 3.1, 3.2 and 3.3. Llama 4 sets `<|python_start|>` and `<|python_end|>` around them.
 */
function* llama3Json(cursor: Cursor): Parse {
  cursor.code = yield
  yield* cursor.spaces()
  for (let marked = false; ; marked = true) {
    if (marked) {
      if ((yield* cursor.marker(['<|python_tag|>', '<|python_start|>'])) === undefined) return
      yield* cursor.spaces()
    }
    let calls = 0
    let good = true
    while (good && cursor.is('{')) {
      good = yield* callObject(cursor, marked || calls > 0)
      if (!good) break
      calls++
      yield* cursor.spaces()
      if (yield* cursor.literal(';')) yield* cursor.spaces()
    }
    if (!good) cursor.giveUp()
    else if (marked && calls === 0) cursor.giveUpUnit()
    else if (marked && (yield* cursor.literal('<|python_end|>'))) cursor.raw = ''
  }
}

/** `[TOOL_CALLS] [{...}, ...]` up to version 7 of Mistral's tokenizers, `[TOOL_CALLS]name[ARGS]{...}` from version 11. */
function* mistral(cursor: Cursor): Parse {
  cursor.code = yield
  while ((yield* cursor.marker([MISTRAL_CALLS])) !== undefined) {
    yield* cursor.spaces()
    let good: boolean
    if (cursor.is('[')) good = yield* callList(cursor, true)
    else if (cursor.is('{')) good = yield* callObject(cursor, true)
    else good = yield* mistralNamed(cursor)
    if (!good) cursor.giveUp()
  }
}

function* mistralNamed(cursor: Cursor): Parse<boolean> {
  const name = yield* cursor.word(NAME)
  if (name === '') return false
  // Both are special tokens, which the text may lack.
  if (yield* cursor.literal('[')) {
    if (yield* cursor.literal('CALL_ID]')) {
      yield* cursor.spaces()
      yield* cursor.word(NAME)
      yield* cursor.spaces()
      if (cursor.is('[')) yield* cursor.take()
    }
    if (cursor.raw.endsWith('[') && !(yield* cursor.literal('ARGS]'))) return false
  }
  yield* cursor.spaces()
  if (!cursor.is('{')) return false
  cursor.commit(name)
  return yield* cursor.json((text) => cursor.out.arguments(text), false)
}

/**
 * `[name(key=value, ...), ...]` with Python literals, at the beginning of the output or after `<|python_start|>`: Llama 3.2
 * and 4.
 */
function* pythonic(cursor: Cursor): Parse {
  cursor.code = yield
  yield* cursor.spaces()
  for (let marked = false; ; marked = true) {
    if (marked) {
      if ((yield* cursor.marker(['<|python_start|>'])) === undefined) return
      yield* cursor.spaces()
    }
    if (!cursor.is('[')) {
      if (marked) cursor.giveUpUnit()
    } else if (!(yield* pythonicList(cursor, marked))) cursor.giveUp()
    else {
      yield* cursor.spaces()
      if (yield* cursor.literal('<|python_end|>')) cursor.raw = ''
    }
  }
}

function* pythonicList(cursor: Cursor, marked: boolean): Parse<boolean> {
  yield* cursor.take()
  for (let first = true; ; first = false) {
    yield* cursor.spaces()
    if (!first && cursor.is(']')) break
    const name = yield* cursor.word(NAME)
    yield* cursor.spaces()
    if (name === '' || !cursor.is('(')) return false
    if (first && !marked && !cursor.knows(name)) return false
    yield* cursor.take()
    cursor.commit(name)
    if (!(yield* pythonicArguments(cursor))) return false
    yield* cursor.spaces()
    if (!cursor.is(',')) break
    yield* cursor.take()
  }
  if (!cursor.is(']')) return false
  cursor.raw = ''
  cursor.code = yield
  return true
}

/** Keyword arguments as the members of a JSON object, behind the opening parenthesis. */
function* pythonicArguments(cursor: Cursor): Parse<boolean> {
  const { out } = cursor
  out.arguments('{')
  for (let first = true; ; first = false) {
    yield* cursor.spaces()
    if (cursor.is(')')) break
    const key = yield* cursor.word(/\w/)
    yield* cursor.spaces()
    if (key === '' || !cursor.is('=')) return false
    yield* cursor.take()
    cursor.raw = ''
    out.arguments(`${first ? '' : ', '}${JSON.stringify(key)}: `)
    const literal = new PythonLiteral((json) => out.arguments(json))
    for (let result = 'more'; result === 'more' && cursor.code !== END; ) {
      result = literal.feed(cursor.code)
      if (result === 'bad') return false
      if (result !== 'past') cursor.code = yield
    }
    yield* cursor.spaces()
    if (!cursor.is(',')) break
    yield* cursor.take()
  }
  if (!cursor.is(')')) return false
  out.arguments('}')
  cursor.raw = ''
  cursor.code = yield
  return true
}

export const DEEPSEEK = {
  begin: '<｜tool▁calls▁begin｜>',
  callBegin: '<｜tool▁call▁begin｜>',
  separator: '<｜tool▁sep｜>',
  callEnd: '<｜tool▁call▁end｜>',
  end: '<｜tool▁calls▁end｜>',
}

/** DeepSeek's tokens around a name and a fenced JSON object (R1, V3), or an object alone (V3.1). */
function* deepseek(cursor: Cursor): Parse {
  const { begin, callBegin, end } = DEEPSEEK
  cursor.code = yield
  for (;;) {
    const found = yield* cursor.marker([begin, callBegin, end])
    if (found === undefined) return
    if (found === end && cursor.out.anyCalls) cursor.raw = ''
    else if (found === end) cursor.giveUp()
    else {
      if (found === begin) yield* cursor.spaces()
      if (found === begin && !(yield* cursor.literal(callBegin))) cursor.giveUpUnit()
      else if (!(yield* deepseekCall(cursor))) cursor.giveUp()
    }
  }
}

function* deepseekCall(cursor: Cursor): Parse<boolean> {
  let name = yield* cursor.word(NAME)
  if (name === '' || !(yield* cursor.literal(DEEPSEEK.separator))) return false
  const fenced = !cursor.is('{')
  if (fenced) {
    // What stood there was the type, `function`.
    name = yield* cursor.word(NAME)
    yield* cursor.spaces()
    if (name === '' || !(yield* cursor.literal('```json'))) return false
    yield* cursor.spaces()
  }
  if (!cursor.is('{')) return false
  cursor.commit(name)
  if (!(yield* cursor.json((text) => cursor.out.arguments(text), false))) return false
  yield* cursor.spaces()
  if (fenced && (yield* cursor.literal('```'))) yield* cursor.spaces()
  if (yield* cursor.literal(DEEPSEEK.callEnd)) cursor.raw = ''
  return true
}

/** A call's object, or a list of them, and nothing else: what a grammar makes of a forced call. */
function* json(cursor: Cursor): Parse {
  cursor.code = yield
  yield* cursor.spaces()
  if (cursor.is('[')) yield* callList(cursor, true)
  else if (cursor.is('{')) yield* callObject(cursor, true)
  cursor.giveUp()
  yield* cursor.marker([])
}

const OPENAI_ID = { idPrefix: 'call_', idLength: 24 }

export const FORMATS = {
  hermes: { markers: ['<tool_call>', '</tool_call>'], parse: hermes, ...OPENAI_ID },
  llama3_json: { markers: ['<|python_tag|>', '<|python_start|>', '<|python_end|>'], parse: llama3Json, ...OPENAI_ID },
  // Mistral's templates refuse ids of another length.
  mistral: { markers: [MISTRAL_CALLS, '[CALL_ID]', MISTRAL_ARGUMENTS], parse: mistral, idPrefix: '', idLength: 9 },
  pythonic: { markers: ['<|python_start|>', '<|python_end|>'], parse: pythonic, ...OPENAI_ID },
  deepseek_v3: { markers: Object.values(DEEPSEEK), parse: deepseek, ...OPENAI_ID },
  json: { markers: [], parse: json, ...OPENAI_ID },
} as const satisfies Record<string, ToolCallFormat>
