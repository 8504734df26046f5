/** For the tests of one file: a server over models/tiny-storyteller, and OpenAI's client of it. */
import OpenAI from 'openai'
import { afterAll, beforeAll, expect } from 'vitest'
import { type Fixture, startServer } from './support'

export interface Served {
  /** Both are there as soon as tests run. */
  fixture: Fixture
  client: OpenAI
}

/** Starts the server before the file's tests, and ends it after them; nothing must have failed inside of it by then. */
export function useServer(): Served {
  const served = {} as Served
  beforeAll(async () => {
    served.fixture = await startServer()
    served.client = new OpenAI({ baseURL: `${served.fixture.url}/v1`, apiKey: 'unused', maxRetries: 0 })
  })
  afterAll(async () => {
    expect(served.fixture.failures).toEqual([])
    await served.fixture.close()
  })
  return served
}
