// Builds what is missing, then runs everything that needs no GPU: type check, linters, native tests (ctest), vitest.
//   npm test [-- <vitest arguments, e.g. a file name>]     with arguments: vitest alone
// Leaves build/test/ctest.xml and build/test/vitest.json.
import { mkdirSync, rmSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { root, run, runTool, say } from './tools.mjs'

const args = process.argv.slice(2)
run(process.execPath, [join(root, 'scripts', 'ensure.mjs')])
if (args.length > 0) process.exit(runTool('vitest', 'vitest', ['run', ...args], { allowFailure: true }))

const out = join(root, 'build', 'test')
rmSync(join(out, 'vitest.json'), { force: true })
rmSync(join(out, 'ctest.xml'), { force: true })
mkdirSync(out, { recursive: true })
const failed = []
const step = (name, command) => {
  say(`${name} ...`)
  if (command() !== 0) failed.push(name)
}
const jobs = String(availableParallelism())
const quiet = { allowFailure: true }

for (const project of ['.', 'test', 'typings']) {
  step(`type check of ${project === '.' ? 'lib' : project}`, () => runTool('typescript', 'tsc', ['-p', project, '--noEmit'], quiet))
}
step('oxlint', () => runTool('oxlint', 'oxlint', ['--deny-warnings'], quiet))
step('clang-format', () => run(process.execPath, [join(root, 'scripts', 'format.mjs')], quiet))
step('native tests', () => {
  const build =
    run('cmake', ['-S', root, '-B', out, '-DCMAKE_BUILD_TYPE=Release', '-DNT_BUILD_TESTS=ON', '-DNT_BUILD_ADDON=OFF', '--log-level=WARNING'], quiet) ||
    run('cmake', ['--build', out, '--parallel', jobs], quiet)
  return build || run('ctest', ['--test-dir', out, '--output-on-failure', '--output-junit', join(out, 'ctest.xml')], quiet)
})
step('vitest', () => runTool('vitest', 'vitest', ['run', '--reporter=default', '--reporter=json', `--outputFile.json=${join(out, 'vitest.json')}`], quiet))

if (failed.length > 0) say(`failed: ${failed.join(', ')}`)
process.exit(failed.length === 0 ? 0 : 1)
