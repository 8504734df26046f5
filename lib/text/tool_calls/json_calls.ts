import { JsonStringDecoder } from './json_scanner'
import { type Cursor, END, type Parse } from './machine'

/** Keys of a call's object beside name and arguments. An object with others is a call only behind a marker. */
const OTHER_KEYS = new Set(['type', 'id'])

/** The arguments in a string, as OpenAI's API has them: JSON within JSON. */
function* argumentsInString(cursor: Cursor, emit: (text: string) => void, keep: boolean): Parse<boolean> {
  const decoder = new JsonStringDecoder()
  let empty = true
  for (let first = true; cursor.code !== END; first = false) {
    const step = first ? { text: '' } : decoder.feed(cursor.code)
    if (step === 'bad') return false
    if (keep) cursor.raw += String.fromCharCode(cursor.code)
    if (step === 'end') {
      if (empty) emit('{}')
    } else if (step.text !== '') {
      empty = false
      emit(step.text)
    }
    cursor.code = yield
    if (step === 'end') return true
  }
  return false
}

/**
 * `{"name": ..., "arguments": {...}}` (or `parameters`), at its brace. The call begins with its arguments, and these stream;
 * where they come before the name, they wait for it.
 * @param marked a marker has announced a call
 * @returns false at the unit where it is no such object
 */
export function* callObject(cursor: Cursor, marked: boolean): Parse<boolean> {
  const { out } = cursor
  let name: string | undefined
  let begun = false
  let held: string | undefined
  yield* cursor.take()
  yield* cursor.spaces()
  for (;;) {
    const key = yield* cursor.string()
    if (key === undefined) return false
    yield* cursor.spaces()
    if (!cursor.is(':')) return false
    yield* cursor.take()
    yield* cursor.spaces()
    if (key === 'name' && name === undefined) {
      name = yield* cursor.string()
      if (name === undefined || name === '' || !(marked || cursor.knows(name))) return false
      if (held !== undefined) {
        cursor.commit(name)
        out.arguments(held)
        begun = true
      }
    } else if ((key === 'arguments' || key === 'parameters') && !begun && held === undefined) {
      let read: (emit: (text: string) => void, keep: boolean) => Parse<boolean>
      if (cursor.is('{')) read = (emit, keep) => cursor.json(emit, keep)
      else if (cursor.is('"')) read = (emit, keep) => argumentsInString(cursor, emit, keep)
      else if (cursor.is('n')) {
        read = function* (emit): Parse<boolean> {
          emit('{}')
          return yield* cursor.literal('null')
        }
      } else return false
      if (name === undefined) {
        let text = ''
        if (!(yield* read((part) => (text += part), true))) return false
        held = text
      } else {
        cursor.commit(name)
        begun = true
        if (!(yield* read((part) => out.arguments(part), false))) return false
      }
    } else {
      if (!marked && !OTHER_KEYS.has(key)) return false
      if (!(yield* cursor.json(() => {}, true))) return false
    }
    yield* cursor.spaces()
    if (!cursor.is(',')) break
    yield* cursor.take()
    yield* cursor.spaces()
  }
  if (!cursor.is('}') || name === undefined) return false
  if (!begun) {
    cursor.commit(name)
    out.arguments('{}')
  }
  // What stands after the arguments is the call's, too.
  cursor.raw = ''
  cursor.code = yield
  return true
}

/** A list of such objects, at its bracket, with at least one. */
export function* callList(cursor: Cursor, marked: boolean): Parse<boolean> {
  yield* cursor.take()
  for (;;) {
    yield* cursor.spaces()
    if (!cursor.is('{') || !(yield* callObject(cursor, marked))) return false
    yield* cursor.spaces()
    if (!cursor.is(',')) break
    yield* cursor.take()
  }
  if (!cursor.is(']')) return false
  cursor.raw = ''
  cursor.code = yield
  return true
}
