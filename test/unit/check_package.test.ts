/** What scripts/check-package.mjs says of a package that lacks a part: `npm pack` itself says nothing. */
import { execFile } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'

const root = join(__dirname, '..', '..')
let checkout: string

beforeAll(() => {
  checkout = mkdtempSync(join(tmpdir(), 'node-tensorrt-checkout-'))
  for (const path of ['package.json', 'README.md', 'CHANGELOG.md', 'LICENSE', 'docs', 'examples', 'scripts']) cpSync(join(root, path), join(checkout, path), { recursive: true })
})
afterAll(() => rmSync(checkout, { recursive: true, force: true }))

function check(): Promise<{ code: number; stderr: string }> {
  return new Promise((done) => {
    execFile(process.execPath, [join(checkout, 'scripts', 'check-package.mjs'), '--contents'], (error, _, stderr) => done({ code: error === null ? 0 : Number(error.code), stderr }))
  })
}

function put(path: string): void {
  mkdirSync(dirname(join(checkout, path)), { recursive: true })
  writeFileSync(join(checkout, path), '')
}

it('names each part that is not built, and then each link that leads nowhere', { timeout: 120_000 }, async () => {
  const bare = await check()
  expect(bare.code, bare.stderr).toBe(1)
  expect(bare.stderr).toContain('JavaScript: dist/index.js, ')
  expect(bare.stderr).toContain('typings: typings/index.d.ts, ')
  expect(bare.stderr).toContain('prebuilt addon: prebuilds/')
  expect(bare.stderr).toContain('npm run prebuild:all')

  for (const entry of ['index', 'server/index']) for (const extension of ['js', 'mjs']) put(`dist/${entry}.${extension}`)
  put('dist/cli/main.js')
  for (const entry of ['index', 'server']) for (const extension of ['d.ts', 'd.mts']) put(`typings/${entry}.${extension}`)
  const unbuilt = await check()
  expect(unbuilt.code).toBe(1)
  expect(unbuilt.stderr).toContain('prebuilt addon')
  expect(unbuilt.stderr).not.toContain('typings')

  put('prebuilds/linux-x64/node-tensorrt.node')
  expect(await check()).toMatchObject({ code: 0 })
  rmSync(join(checkout, 'docs', 'cli.md'))
  rmSync(join(checkout, 'examples', 'README.md'))
  const unlinked = await check()
  expect(unlinked.code).toBe(1)
  expect(unlinked.stderr).toContain('README.md links to what the package does not carry ("files" of package.json): examples/README.md, docs/cli.md')
})
