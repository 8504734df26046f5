// Checks the C++ sources against .clang-format; --write corrects them.
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { root, runTool } from './tools.mjs'

const files = ['cpp', 'test/native', 'bench/native', 'examples'].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true })
    .filter((name) => /\.(cpp|h|cu|cuh)$/.test(name))
    .map((name) => join(folder, name)),
)
runTool('clang-format-node', 'clang-format', process.argv.includes('--write') ? ['-i', ...files] : ['--dry-run', '--Werror', ...files])
