// Makes all that the package carries: dist/, typings/, prebuilds/, checked.
import { execFileSync } from 'node:child_process'
import { existsSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { requireBuildTools, root, run, runTool } from './tools.mjs'

requireBuildTools()
const script = (name) => run(process.execPath, [join(root, 'scripts', name)])
script('build-ts.mjs')
script('build-typings.mjs')

rmSync(join(root, 'prebuilds'), { recursive: true, force: true })
// node-gyp asks for Node's headers although CMake brings its own; those that Node was installed with save it a download.
const prefix = dirname(dirname(process.execPath))
const env = { ...process.env }
if (env.npm_config_nodedir === undefined && existsSync(join(prefix, 'include', 'node', 'node.h'))) env.npm_config_nodedir = prefix
runTool('prebuildify', 'prebuildify', ['--napi', '--strip', '--target', process.versions.node], { env })
if (process.platform === 'linux') script('check-binary.mjs')

// The binary that was just made is the one that the loader finds.
const found = execFileSync(process.execPath, ['-p', `require('./dist/native').loadAddon().path`], { cwd: root, encoding: 'utf8' }).trim()
if (!found.startsWith(join(root, 'prebuilds'))) throw new Error(`the loader took ${found}`)
