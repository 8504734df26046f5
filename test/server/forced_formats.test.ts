/** Forced calls in the formats that models have learnt, by one that has learnt none: what it writes and what clients see. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import OpenAI from 'openai'
import { describe, expect, it } from 'vitest'
import { LLM } from '../../lib'
import { createServer } from '../../lib/server'
import { type Call, lampTools } from './lamp_tools'
import { MODEL, NAME, startServer } from './support'

const { tools, ask, check } = lampTools()

describe("a forced call in the model's own format", () => {
  /** The text that the model wrote, by its tokens. */
  const written = ({ logprobs }: OpenAI.ChatCompletion.Choice): string =>
    Buffer.concat(logprobs!.content!.map(({ bytes }) => Buffer.from(bytes!))).toString()
  const reported = { ...ask, logprobs: true }

  it.each([
    ['hermes', /^<tool_call>\n\{"name": "(\w+)", "arguments": \{[^]*\}\}\n<\/tool_call>$/],
    ['llama3_json', /^\{"name": "(\w+)", "parameters": \{[^]*\}\}$/],
    ['deepseek_v3', /^<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>(\w+)<｜tool▁sep｜>\{[^]*\}<｜tool▁call▁end｜><｜tool▁calls▁end｜>$/],
    // Its literals are Python's, which no schema describes.
    ['pythonic', /^\{\s?"name"\s?:\s?"(\w+)"\s?,\s?"arguments"[^]*\}\s?\}$/],
  ] as const)('%s', async (toolCallParser, format) => {
    const own = await startServer({ toolCallParser })
    const of = new OpenAI({ baseURL: `${own.url}/v1`, apiKey: 'unused', maxRetries: 0 })
    for (const [seed, tool_choice] of [[1, { type: 'function', function: { name: 'set_lamp' } }], [2, 'required']] as const) {
      const request = { ...reported, max_tokens: 300, seed, tool_choice, parallel_tool_calls: false }
      const whole = (await of.chat.completions.create(request)).choices[0]!
      expect(whole.message.content).toBeNull()
      expect(whole.message.tool_calls).toHaveLength(1)
      const call = whole.message.tool_calls![0] as Call
      check(call)
      // The last token ends the text, and is none of it.
      expect(format.exec(written(whole).replace(/<\|end\w*\|>$/, ''))?.[1], written(whole)).toBe(call.function.name)
      const streamed = (await of.chat.completions.stream(request).finalChatCompletion()).choices[0]!
      expect((streamed.message.tool_calls![0] as Call).function.arguments).toBe(call.function.arguments)
    }
    expect(own.failures).toEqual([])
    await own.close()
  })

  it('mistral: the token that opens the calls ends the prompt', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'mistral-'))
    cpSync(MODEL, folder, { recursive: true })
    const path = join(folder, 'tokenizer.json')
    const tokenizer = readFileSync(path, 'utf8')
    // Of all special tokens the one that no chat here has.
    writeFileSync(path, tokenizer.replaceAll('<|system|>', '[TOOL_CALLS]'))
    const llm = await LLM.load(folder, { backend: 'cpu', threads: 2 })
    const server = createServer(llm, { modelName: NAME, toolCallParser: 'mistral' })
    const { url } = await server.listen({ port: 0 })
    const of = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0 })
    const prompt = llm.applyChatTemplate(ask.messages, { tools }).tokens.length
    const { choices, usage } = await of.chat.completions.create({ ...reported, seed: 4, tool_choice: { type: 'function', function: { name: 'set_lamp' } } })
    check(choices[0]!.message.tool_calls![0] as Call)
    expect(written(choices[0]!)).toMatch(/^\[\s?\{[^]*\}\s?\]/)
    expect(choices[0]!.message.tool_calls![0]!.id).toMatch(/^[A-Za-z0-9]{9}$/)
    expect(usage!.prompt_tokens).toBe(prompt + 1)
    await server.close()
    await llm.close()
    rmSync(folder, { recursive: true })
  })
})
