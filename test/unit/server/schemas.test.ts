import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { parseChat } from '../../../lib/server/schemas/chat'
import { parse, prompts, samplingFields } from '../../../lib/server/schemas/fields'

const schema = z.object({ ...samplingFields, prompt: prompts })

const scalar = fc.oneof(
  fc.constantFrom(null, true, false, '', 'text', 0, -0, 1, -1, 2.5, 2 ** 31 - 1, 2 ** 31, 2 ** 53, 1e300, 'none'),
  fc.integer({ min: -2000, max: 2000 }),
  fc.double(),
  fc.string({ maxLength: 5 }),
)
const value = fc.oneof(
  { weight: 4, arbitrary: scalar },
  fc.array(scalar, { maxLength: 4 }),
  fc.array(fc.array(fc.nat(300), { maxLength: 3 }), { maxLength: 3 }),
  fc.dictionary(fc.constantFrom('include_usage', 'continuous_usage_stats', 'type', '7', '__proto__'), scalar, { maxKeys: 3 }),
)
const body = fc.dictionary(fc.constantFrom(...Object.keys(schema.shape), 'unknown', '__proto__'), value, { maxKeys: 5 })

const given = (record: object): object => Object.fromEntries(Object.entries(record).filter(([, one]) => one !== undefined))

describe('plain values', () => {
  it('are taken where zod takes them as they are, and nowhere else', () => {
    let taken = 0
    fc.assert(
      fc.property(body, fc.boolean(), (fields, hasPrompt) => {
        const request = hasPrompt ? { prompt: 'once', ...fields } : fields
        const whole = schema.safeParse(request)
        if (!whole.success) expect(() => parse(schema, request)).toThrow(expect.objectContaining({ status: 400 }))
        else {
          taken++
          expect(given(parse(schema, request))).toEqual(given(whole.data))
        }
      }),
      { numRuns: 3000 },
    )
    expect(taken).toBeGreaterThan(100)
  })

  it('are taken of messages, and what else these may have goes past zod', () => {
    const message = (fields: object): object => ({ role: 'user', content: 'hello', ...fields })
    const parsed = (...messages: unknown[]): unknown => parseChat({ messages }).messages
    expect(parsed(message({}), message({ role: 'system' }))).toEqual([message({}), message({ role: 'system' })])
    expect(parsed(message({}), message({ unknown: 1 }))).toEqual([message({}), message({})])
    expect(parsed(message({ content: null }))).toEqual([{ role: 'user' }])
    expect(parsed(message({ tool_calls: [{ id: 'a', function: { name: 'f', arguments: '{}' } }] }))).toMatchObject([{ tool_calls: [{ type: 'function' }] }])
    for (const wrong of [[], [{ content: 'hello' }], [message({}), 7], [message({}), [message({})]], [message({ content: 7 })], [message({ role: null })]]) {
      expect(() => parsed(...wrong)).toThrow(expect.objectContaining({ status: 400 }))
    }
  })
})
