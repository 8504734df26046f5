/** The part of vitest that the conformance suite uses, over node:test; `expect` is vitest's own. */
import { JestAsymmetricMatchers, JestChaiExpect, JestExtend } from '@vitest/expect'
import * as chai from 'chai'
import { verify } from './report.mjs'

for (const plugin of [JestExtend, JestChaiExpect, JestAsymmetricMatchers]) chai.use(plugin)
export const expect = chai.expect

const names = []
const cleanups = []

export function describe(name, body) {
  names.push(name)
  body()
  names.pop()
}

/** For the whole program: it holds one suite. */
export function afterEach(body) {
  cleanups.push(body)
}

export function it(name, body) {
  const own = [...cleanups]
  verify([...names, name].join(': '), {}, async (context) => {
    try {
      await body({ skip: () => context.skip('the executor claims no such thing') })
    } finally {
      for (const cleanup of own) await cleanup()
    }
  })
}
