/** The one table from the library's errors to what clients are told. */
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { AbortError, ERROR_CODES, type ErrorCode, TensorRTError } from '../../../lib/errors'
import { ANSWERS, ApiError, toApiError } from '../../../lib/server/errors'

const SECRET = '/srv/models/secret at 0x7f00deadbeef'
const told = (code: ErrorCode): ApiError => toApiError(new TensorRTError(code, SECRET))

describe('errors of the library', () => {
  it('have an answer each, no more and no less', () => {
    expect(Object.keys(ANSWERS).sort()).toEqual([...ERROR_CODES].sort())
  })

  it('are the client’s own only where a request can be to blame', () => {
    const blamed = ERROR_CODES.filter((code) => told(code).status === 400)
    expect(blamed).toEqual([
      'ERR_INVALID_ARGUMENT',
      'ERR_INVALID_TOKEN',
      'ERR_PROMPT_TOO_LONG',
      'ERR_REQUEST_TOO_LARGE',
      'ERR_CHAT_TEMPLATE',
      'ERR_GRAMMAR_INVALID',
    ])
    for (const code of blamed) expect(told(code), code).toMatchObject({ type: 'invalid_request_error', message: SECRET })
  })

  it('tell nothing of the inside where they are not', () => {
    for (const code of ERROR_CODES) {
      const { status, message, body } = told(code)
      if (status === 400) continue
      expect(message, code).not.toContain('secret')
      expect(JSON.stringify(body), code).not.toContain('secret')
    }
    expect(toApiError(new Error(SECRET))).toMatchObject({ status: 500, code: 'internal_error' })
    expect(toApiError(new AbortError(new Error(SECRET))).message).not.toContain('secret')
    expect(toApiError('no error at all')).toMatchObject({ status: 500 })
  })

  it('ask to come again, and when, exactly where that can help', () => {
    for (const code of ERROR_CODES) {
      const { status, headers } = toApiError(new TensorRTError(code, SECRET), 7.2)
      expect(headers['retry-after'], code).toBe(status === 429 || status === 503 ? '8' : undefined)
      expect(headers['x-should-retry'], code).toBe(status === 504 ? 'false' : undefined)
    }
  })

  it('are in the operators’ table, by status and code', () => {
    const page = readFileSync(resolve(__dirname, '../../../docs/server.md'), 'utf8')
    for (const { status, code } of Object.values(ANSWERS)) {
      const row = page.split('\n').find((line) => line.startsWith(`| ${status} |`) && line.includes(`\`${code}\``))
      expect(row, `${status} ${code}`).toBeDefined()
    }
  })

  it('speak of fields as requests name them', () => {
    const error = new TensorRTError('ERR_INVALID_ARGUMENT', '"maxTokens" must be an integer, and "topK" is not')
    expect(toApiError(error)).toMatchObject({ param: 'max_tokens', message: '"max_tokens" must be an integer, and "top_k" is not' })
    const nested = new TensorRTError('ERR_CHAT_TEMPLATE', '"messages[3].role" must alternate')
    expect(toApiError(nested)).toMatchObject({ param: 'messages[3].role', code: 'chat_template_error' })
  })
})
