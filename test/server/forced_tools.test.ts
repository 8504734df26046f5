/** Forced tool calls, by a model that has never seen a tool: the grammar alone makes them. */
import { describe, expect, it } from 'vitest'
import { useServer } from './client_fixture'
import { type Call, lampTools } from './lamp_tools'

const served = useServer()

const { ask, check } = lampTools({ on: { type: 'boolean' } })

describe('a forced call', () => {
  it('is of the function that is named, with arguments of its schema', async () => {
    for (let seed = 0; seed < 6; seed++) {
      const { choices } = await served.client.chat.completions.create({ ...ask, seed, tool_choice: { type: 'function', function: { name: 'set_lamp' } } })
      const { message, finish_reason } = choices[0]!
      expect(finish_reason).toBe('stop')
      expect(message.content).toBeNull()
      expect(message.tool_calls).toHaveLength(1)
      expect((message.tool_calls![0] as Call).function.name).toBe('set_lamp')
      check(message.tool_calls![0] as Call)
    }
  })

  it('is of any function where one is required, and streams', async () => {
    for (let seed = 0; seed < 4; seed++) {
      const request = { ...ask, seed, tool_choice: 'required' as const, parallel_tool_calls: false }
      const whole = (await served.client.chat.completions.create(request)).choices[0]!
      expect(whole.finish_reason).toBe('tool_calls')
      expect(whole.message.tool_calls).toHaveLength(1)
      check(whole.message.tool_calls![0] as Call)
      const streamed = (await served.client.chat.completions.stream(request).finalChatCompletion()).choices[0]!
      const functions = (calls: unknown): unknown => (calls as Call[]).map((call) => ({ name: call.function.name, arguments: call.function.arguments }))
      expect(streamed.finish_reason).toBe('tool_calls')
      expect(functions(streamed.message.tool_calls)).toEqual(functions(whole.message.tool_calls))
    }
  })

  it('has no prose, wherever the length cuts it off', async () => {
    for (let length = 1; length < 24; length++) {
      const { choices } = await served.client.chat.completions.create({ ...ask, seed: 1, tool_choice: 'required', max_tokens: length })
      expect(choices[0]!.message.content ?? '').toBe('')
    }
  })

  it('may be several', async () => {
    let most = 0
    for (let seed = 0; seed < 6; seed++) {
      const { choices } = await served.client.chat.completions.create({ ...ask, seed, tool_choice: 'required', max_tokens: 300 })
      const calls = (choices[0]!.message.tool_calls ?? []) as Call[]
      // A list may be cut off within a call, and the calls before it are whole.
      for (const call of choices[0]!.finish_reason === 'length' ? calls.slice(0, -1) : calls) check(call)
      most = Math.max(most, calls.length)
    }
    expect(most).toBeGreaterThan(0)
  })
})
