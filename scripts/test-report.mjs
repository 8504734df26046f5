// Adds up what ctest and vitest reported and prints "N passed, N failed". A report that is missing counts as a failure.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './tools.mjs'

const out = join(root, 'build', 'test')
let passed = 0
let failed = 0
try {
  const suite = /<testsuite[^>]*>/.exec(readFileSync(join(out, 'ctest.xml'), 'utf8'))[0]
  const count = (name) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(suite)[1])
  failed += count('failures')
  passed += count('tests') - count('failures') - count('disabled') - count('skipped')
} catch (error) {
  failed += 1
  console.log(`no native report: ${error.message}`)
}
try {
  const report = JSON.parse(readFileSync(join(out, 'vitest.json'), 'utf8'))
  passed += report.numPassedTests
  failed += report.numFailedTests
  // A file that does not even load has no tests to fail.
  failed += report.testResults.filter((file) => file.status === 'failed' && file.assertionResults.every((test) => test.status !== 'failed')).length
} catch (error) {
  failed += 1
  console.log(`no vitest report: ${error.message}`)
}
// Type check and linters are not tests, but a run that they fail has not passed.
if (process.argv[2] !== '0' && failed === 0) failed = 1
console.log(`${passed} passed, ${failed} failed`)
