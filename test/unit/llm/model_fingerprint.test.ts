import { closeSync, cpSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { modelFingerprint } from '../../../lib/llm/model_fingerprint'
import { readModelFolder } from '../../../lib/llm/model_folder'

const story = join(__dirname, '..', '..', '..', 'models', 'tiny-storyteller')
let folder: string
beforeEach(() => {
  folder = join(mkdtempSync(join(tmpdir(), 'fingerprint-')), 'model')
  cpSync(story, folder, { recursive: true })
})
afterEach(() => rmSync(join(folder, '..'), { recursive: true }))

const of = async (path = folder): Promise<string> => modelFingerprint(await readModelFolder(path))
const edit = (name: string, change: (json: Record<string, unknown>) => object): void => {
  const path = join(folder, name)
  writeFileSync(path, JSON.stringify(change(JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>)))
}

it('is the same wherever the model lies, and whenever it was copied', async () => {
  const first = await of()
  expect(first).toMatch(/^[0-9a-f]{64}$/)
  expect(await of(story)).toBe(first)
  expect(await of()).toBe(first)
})

it.each<[string, () => void]>([
  ['the architecture', () => edit('config.json', (config) => ({ ...config, rms_norm_eps: 0.5 }))],
  ['the defaults', () => edit('generation_config.json', (config) => ({ ...config, temperature: 0.123 }))],
  ['the chat template', () => writeFileSync(join(folder, 'chat_template.jinja'), '{{ messages[0].content }}')],
  ['the tokenizer', () => edit('tokenizer.json', (config) => ({ ...config, version: '1.1' }))],
  [
    'the weights, as after a training',
    () => {
      const path = join(folder, 'model.safetensors')
      const bytes = readFileSync(path)
      const begin = 8 + Number(bytes.readBigUInt64LE(0))
      for (let at = begin; at < bytes.length; at += 512) bytes[at]! ^= 1
      writeFileSync(path, bytes)
    },
  ],
  [
    'the end of the weights',
    () => {
      const path = join(folder, 'model.safetensors')
      const last = readFileSync(path).length - 1
      const file = openSync(path, 'r+')
      writeSync(file, Buffer.of(0x5a), 0, 1, last)
      closeSync(file)
    },
  ],
])('changes with %s', async (_, change) => {
  const before = await of()
  change()
  expect(await of()).not.toBe(before)
})

it('says which file cannot be read', async () => {
  const model = await readModelFolder(folder)
  rmSync(join(folder, 'model.safetensors'))
  await expect(modelFingerprint(model)).rejects.toMatchObject({ code: 'ERR_IO', message: expect.stringContaining('model.safetensors') as string })
})
