// Names the tests that failed, and those that passed at a second attempt only, adds up what ctest and vitest reported and prints
// "N passed, N failed". A report that is missing counts as a failure.
import { existsSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { root } from './tools.mjs'

const out = join(root, 'build', 'test')
let passed = 0
let failed = 0
/** A line each, however long the difference is that an assertion prints. */
const name = (kind, test, message) => console.log(`${kind}: ${test}: ${message.split('\n', 1)[0].slice(0, 300)}`)
try {
  const xml = readFileSync(join(out, 'ctest.xml'), 'utf8')
  const suite = /<testsuite[^>]*>/.exec(xml)[0]
  for (const [, test] of xml.matchAll(/<testcase name="([^"]*)"[^>]*status="fail"/g)) name('failed', test, 'see the output of ctest above')
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
  for (const file of report.testResults.filter((each) => each.status === 'failed')) {
    const path = relative(root, file.name)
    const tests = file.assertionResults.filter((test) => test.status === 'failed')
    for (const test of tests) name('failed', `${path}: ${test.fullName}`, test.failureMessages?.[0] ?? '')
    // A file that does not even load has no tests to fail.
    if (tests.length > 0) continue
    failed += 1
    name('failed', path, file.message ?? '')
  }
} catch (error) {
  failed += 1
  console.log(`no vitest report: ${error.message}`)
}
const second = join(out, 'second-attempts.json')
if (existsSync(second)) for (const test of JSON.parse(readFileSync(second, 'utf8'))) name('passed at a second attempt', `${test.file}: ${test.name}`, test.message)
// Type check and linters are not tests, but a run that they fail has not passed.
if (process.argv[2] !== '0' && failed === 0) failed = 1
console.log(`${passed} passed, ${failed} failed`)
