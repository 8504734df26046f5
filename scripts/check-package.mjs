// publint and "Are the types wrong?" on the tarball as npm packs it.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execFileSync } from 'node:child_process'
import { root, runTool } from './tools.mjs'

const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-pack-'))
try {
  const [packed] = JSON.parse(execFileSync('npm', ['pack', '--json', '--pack-destination', folder], { cwd: root, encoding: 'utf8' }))
  const tarball = join(folder, packed.filename)
  runTool('publint', 'publint', [tarball, '--strict'])
  runTool('@arethetypeswrong/cli', 'attw', [tarball, '--profile', 'node16'])
} finally {
  rmSync(folder, { recursive: true, force: true })
}
