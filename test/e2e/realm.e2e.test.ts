/** The library in another context than the process's first one: as in jest, whose tests and modules run in one by node:vm. */
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { execute } from './programs'

it('runs in a context of node:vm, with threads, grammars and server', async () => {
  const { code, stdout, stderr } = await execute(['--unhandled-rejections=strict', join(__dirname, 'fixtures', 'foreign_realm.cjs')])
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  expect(JSON.parse(stdout)).toEqual({
    long: { promptTokens: 802, completionTokens: 3, cachedTokens: 0 },
    tooLong: 'ERR_PROMPT_TOO_LONG',
    embedded: [192, 192],
    grammar: 3,
    logprobs: [1, 1],
    status: 200,
  })
})
