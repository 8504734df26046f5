/** The pages of docs/ say what the code does. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { environmentName, SETTINGS } from '../../lib/cli/serve_settings'
import { ERROR_CODES } from '../../lib/errors'
import { execute, root } from './programs'

describe('docs', () => {
  it('api.md and cli.md are what the declarations and the help texts make of them', async () => {
    const { code, stderr } = await execute([join(root, 'scripts', 'docs.mjs'), '--check'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  })

  it('errors.md has each code once, in a row that says what it means and what to do, and no other', () => {
    const text = readFileSync(join(root, 'docs', 'errors.md'), 'utf8')
    const rows = [...text.matchAll(/^\| `(ERR_\w+)` \| (.+) \| (.+) \|$/gm)]
    expect(rows.map(([, code]) => code).sort()).toEqual([...ERROR_CODES].sort())
    for (const [, code, meaning, remedy] of rows) {
      expect(meaning!.length, code).toBeGreaterThan(20)
      expect(remedy!.length, code).toBeGreaterThan(5)
    }
    const known = new Set<string>(ERROR_CODES)
    for (const page of ['README.md', 'docs/tuning.md', 'docs/custom-executor.md', 'docs/architecture.md', 'docs/errors.md']) {
      for (const [code] of readFileSync(join(root, page), 'utf8').matchAll(/\bERR_[A-Z_]+\b/g)) {
        if (!code.startsWith('ERR_MODULE_')) expect(known, `${page}: ${code}`).toContain(code)
      }
    }
  })

  it('environment variables of the pages are those of the code', async () => {
    const sources = ['lib/native/load.ts', 'lib/native/tensorrt.ts', 'lib/cli/output.ts', 'lib/cli/serve_keys.ts', 'cpp/tensorrt/library.cpp', 'cpp/tensorrt/cublas_linear.cpp', 'scripts/test.mjs', 'scripts/tools.mjs', 'test/support/fast_check.ts']
    // Those of settings are made of their flags.
    const settings = SETTINGS.map(environmentName)
    const code = [...sources.map((file) => readFileSync(join(root, file), 'utf8')), ...settings].join('\n')
    for (const page of ['README.md', 'docs/errors.md', 'docs/tuning.md', 'docs/cli.md']) {
      for (const [name] of readFileSync(join(root, page), 'utf8').matchAll(/\b(?:NODE_TENSORRT|NT|TENSORRT)_[A-Z_]+\b/g)) expect(code, `${page}: ${name}`).toContain(name)
    }
  })
})
