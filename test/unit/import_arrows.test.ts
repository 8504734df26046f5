import { execFile } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'

const root = resolve(__dirname, '..', '..')
const allowed: [file: string, imported: string][] = [
  ['lib/scheduler/a.ts', '../errors'],
  ['lib/scheduler/a.ts', './b'],
  ['lib/models/a.ts', '../errors'],
  ['lib/text/a.ts', '@huggingface/jinja'],
  ['lib/text/tool_calls/a.ts', '../../errors'],
  ['lib/native/a.ts', 'bindings'],
  ['lib/native/a.ts', '../scheduler/executor'],
  ['lib/runtime/a.ts', '../native'],
  ['lib/runtime/session/a.ts', '../tensor'],
  ['lib/runtime/session/a.ts', '../../native'],
  ['lib/grammar/a.ts', '../text'],
  ['lib/grammar/a.ts', 'node:worker_threads'],
  ['lib/llm/a.ts', '../grammar'],
  ['lib/llm/a.ts', '../native'],
  ['lib/llm/a.ts', '../runtime'],
  ['lib/llm/a.ts', 'node:fs'],
  ['lib/server/routes/a.ts', '../../llm'],
  ['lib/server/a.ts', '../text'],
  ['lib/server/a.ts', 'hono'],
  ['lib/cli/a.ts', '../llm'],
  ['lib/cli/a.ts', '../server'],
]
const forbidden: [file: string, imported: string][] = [
  ['lib/scheduler/a.ts', '../native'],
  ['lib/scheduler/a.ts', '../models'],
  ['lib/scheduler/a.ts', 'node:fs'],
  ['lib/scheduler/a.ts', 'commander'],
  ['lib/models/a.ts', '../scheduler/executor'],
  ['lib/models/a.ts', 'node:path'],
  ['lib/text/a.ts', '../llm'],
  ['lib/text/a.ts', 'node:fs'],
  ['lib/text/tool_calls/a.ts', '../../llm'],
  ['lib/text/tool_calls/a.ts', 'node:fs'],
  ['lib/native/a.ts', '../llm'],
  ['lib/native/a.ts', '../scheduler'],
  ['lib/runtime/a.ts', '../llm'],
  ['lib/runtime/a.ts', '../native/load'],
  ['lib/runtime/session/a.ts', '../../llm'],
  ['lib/runtime/session/a.ts', '../../native/load'],
  ['lib/grammar/a.ts', '../llm'],
  ['lib/grammar/a.ts', '../scheduler'],
  ['lib/text/a.ts', '../grammar'],
  ['lib/llm/a.ts', '../grammar/messages'],
  ['lib/llm/a.ts', '../cli/run'],
  ['lib/llm/a.ts', '../scheduler/heap'],
  ['lib/llm/a.ts', 'bindings'],
  ['lib/llm/a.ts', '../../build/Release/node-tensorrt.node'],
  ['lib/server/a.ts', '../scheduler'],
  ['lib/server/routes/a.ts', '../../llm/engine_loop'],
  ['lib/server/a.ts', '../cli/serve'],
  ['lib/cli/a.ts', '../scheduler'],
  ['lib/cli/a.ts', 'node-gyp-build'],
  ['lib/a.ts', 'bindings'],
]

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-arrows-'))
  copyFileSync(join(root, '.oxlintrc.json'), join(folder, '.oxlintrc.json'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** Rules that the linter reports for a file that imports one thing. */
function lint(file: string, imported: string): Promise<string> {
  const path = join(folder, file)
  mkdirSync(join(path, '..'), { recursive: true })
  writeFileSync(path, `import { thing } from '${imported}'\n\nexport const it = thing\n`)
  return new Promise((done) => {
    const oxlint = join(root, 'node_modules', 'oxlint', 'bin', 'oxlint')
    execFile(process.execPath, [oxlint, '--deny-warnings', file], { cwd: folder }, (_, stdout, stderr) => done(stdout + stderr))
  })
}

it.each(allowed)('%s may import %s', async (file, imported) => {
  expect(await lint(file, imported)).toContain('Found 0 warnings and 0 errors')
})

it.each(forbidden)('%s may not import %s', async (file, imported) => {
  expect(await lint(file, imported)).toContain('no-restricted-imports')
})

it('only cpp/napi includes napi.h, and no room of C++ another than it may', () => {
  const mayInclude: Record<string, string[]> = {
    core: ['core'],
    cpu: ['core', 'cpu'],
    compat: [],
    napi: ['core', 'cpu', 'napi'],
    tensorrt: ['core', 'tensorrt'],
  }
  const rooms = readdirSync(join(root, 'cpp'))
  expect(rooms.filter((room) => mayInclude[room] === undefined)).toEqual([])
  const wrong: string[] = []
  for (const room of rooms) {
    for (const name of readdirSync(join(root, 'cpp', room), { recursive: true, encoding: 'utf8' })) {
      if (!/\.(h|cpp|cu|cuh)$/.test(name)) continue
      for (const [, included = ''] of readFileSync(join(root, 'cpp', room, name), 'utf8').matchAll(/^\s*#\s*include\s+[<"]([^>"]+)[>"]/gm)) {
        const other = included.split('/')[0]!
        const foreign = included.includes('/') && rooms.includes(other) && !mayInclude[room]!.includes(other)
        if (foreign || (/^(napi|node_api|js_native_api)\.h$/.test(included) && room !== 'napi')) wrong.push(`cpp/${room}/${name}: ${included}`)
      }
    }
  }
  expect(wrong).toEqual([])
})
