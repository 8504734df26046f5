/** The pages about serving say what the code does. */
import { readFileSync, writeFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { readServeConfig } from '../../lib/cli/serve_config'
import { KEY_VARIABLE } from '../../lib/cli/serve_keys'
import { environmentName, SETTINGS } from '../../lib/cli/serve_settings'
import { OPEN_ROUTES } from '../../lib/server'
import { root } from './programs'

const page = (name: string): string => readFileSync(join(root, 'docs', name), 'utf8')
const sources = (folder: string): string =>
  ['errors.ts', 'http/body.ts', 'generation/work.ts', 'generation/sampling.ts', 'generation/prompts.ts', 'routes/tokenize.ts', 'app.ts', 'schemas/fields.ts', 'registry.ts', 'seams.ts', 'security/key_security.ts', 'http/request_headers.ts']
    .map((file) => readFileSync(join(root, folder, file), 'utf8'))
    .join('\n')

describe('docs/server.md', () => {
  const text = page('server.md')

  it('has every setting, by field and by flag, and no other', () => {
    for (const { path, flag } of SETTINGS) {
      expect(text.includes(`\`${path}\``), path).toBe(true)
      expect(new RegExp(`\`--(?:no-)?${flag}\``).test(text), flag).toBe(true)
    }
    const fields = new Set(['model', 'auth.keys', ...SETTINGS.map(({ path }) => path)])
    for (const [row] of text.matchAll(/^\| `[a-z][\w.]*`.*\|$/gm)) {
      const [field = '', flags = ''] = row.split('|').slice(1)
      for (const [, name] of field.matchAll(/`([^`]+)`/g)) expect(fields, row).toContain(name)
      for (const [, name] of flags.matchAll(/`--(?:no-)?([\w-]+)`/g)) expect(SETTINGS.map(({ flag }) => flag), row).toContain(name)
    }
    for (const [name] of text.matchAll(/\bNODE_TENSORRT_[A-Z_]*[A-Z]\b/g)) {
      if (name !== 'NODE_TENSORRT_SERVE') expect([KEY_VARIABLE, ...SETTINGS.map(environmentName)], name).toContain(name)
    }
    for (const route of OPEN_ROUTES) expect(text).toContain(`\`${route}\``)
  })

  it('has a configuration that is one', () => {
    const [, yaml] = /```yaml\n([^]*?)```/.exec(text)!
    const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-docs-'))
    try {
      const file = join(folder, 'serve.yaml')
      writeFileSync(file, yaml!)
      expect(readServeConfig({ model: undefined, flags: {}, env: {}, file })).toMatchObject({ port: 8000, kvCacheMemory: 24 * 2 ** 30, auth: { keys: [{ name: 'web' }, { name: 'nightly' }] } })
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })

  it('names statuses and codes that there are', () => {
    const code = sources('lib/server')
    const rows = [...text.matchAll(/^\| (\d{3}) \| (.+?) \|/gm)]
    expect(rows.length).toBeGreaterThan(12)
    for (const [, status, codes] of rows) {
      expect(code, status).toContain(status)
      for (const [, name] of codes!.matchAll(/`(\w+)`/g)) expect(code, name).toContain(`'${name}'`)
    }
  })
})

describe('docs/from-vllm.md', () => {
  it('names flags that there are', () => {
    const flags = new Set(SETTINGS.flatMap(({ flag }) => [flag, `no-${flag}`]))
    const rows = [...page('from-vllm.md').matchAll(/^\| `--[^|]+\| (.+) \|$/gm)]
    expect(rows.length).toBeGreaterThan(15)
    for (const [, here] of rows) {
      for (const [, name] of here!.matchAll(/(?<!build )`?--([\w-]+)/g)) if (!['precision', 'config', 'max-step-tokens'].includes(name!)) expect(flags, name).toContain(name)
    }
  })
})
