/** Two tools for the tests of forced calls, and what a call of either must be. */
import Ajv from 'ajv'
import type OpenAI from 'openai'
import { expect } from 'vitest'
import { NAME } from './support'

export type Call = OpenAI.ChatCompletionMessageFunctionToolCall

/** @param more properties that a call of `set_lamp` must have beside room and level */
export function lampTools(more: Record<string, object> = {}) {
  const properties = { room: { enum: ['kitchen', 'bedroom'] }, level: { type: 'integer', minimum: 0, maximum: 9 }, ...more }
  const lamp = { type: 'object', properties, required: Object.keys(properties), additionalProperties: false }
  const tools: OpenAI.ChatCompletionFunctionTool[] = [
    { type: 'function', function: { name: 'set_lamp', parameters: lamp } },
    { type: 'function', function: { name: 'ring', parameters: { type: 'object', properties: {}, additionalProperties: false } } },
  ]
  const valid = new Ajv({ strict: false }).compile(lamp)
  return {
    tools,
    ask: { model: NAME, messages: [{ role: 'user' as const, content: 'It is dark.' }], tools, max_tokens: 200, temperature: 1 },
    check({ function: { name, arguments: text } }: Call): void {
      if (name === 'set_lamp') expect(valid(JSON.parse(text)), text).toBe(true)
      else expect([name, JSON.parse(text)]).toEqual(['ring', {}])
    },
  }
}
