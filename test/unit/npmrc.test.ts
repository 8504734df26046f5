/** Settings of npm for those who work on the library. */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

const root = join(__dirname, '..', '..')

it('npm knows every key, and runs no install script', async () => {
  // What the npm that runs the tests has handed on is not of the file.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)))
  const { stdout, stderr } = await promisify(execFile)('npm', ['config', 'get', 'ignore-scripts'], { cwd: root, env, shell: process.platform === 'win32' })
  expect(stdout.trim()).toBe('true')
  expect(stderr).not.toContain('Unknown project config')
}, 60_000)

it('dependencies do without their install scripts', () => {
  const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as { packages: Record<string, { hasInstallScript?: boolean }> }
  const scripted = Object.keys(packages).filter((path) => packages[path]!.hasInstallScript === true)
  // A mode that files have anyway, a shortcut, and downloads that nobody needs. Of another one look what it is for.
  expect(scripted).toEqual(['clang-format-node', 'esbuild', 'onnxruntime-node'].map((name) => `node_modules/${name}`))
})
