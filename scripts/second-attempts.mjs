// A vitest reporter: which tests passed at a second attempt only, and what the first one said, into build/test/second-attempts.json.
// A test that needs one is a fault of the test or of what it tests: it is named at the end of a run (scripts/test-report.mjs).
import { mkdirSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { root } from './tools.mjs'

export default class SecondAttempts {
  #tests = []

  onTestCaseResult(test) {
    if (test.diagnostic()?.flaky !== true) return
    const message = test.result().errors?.[0]?.message ?? ''
    this.#tests.push({ file: relative(root, test.module.moduleId), name: test.fullName, message })
  }

  onTestRunEnd() {
    mkdirSync(join(root, 'build', 'test'), { recursive: true })
    writeFileSync(join(root, 'build', 'test', 'second-attempts.json'), JSON.stringify(this.#tests, null, 2) + '\n')
  }
}
