import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import './matchers'
import { version, versionIn } from '../../lib/version'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'version-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

it('is the one of package.json', () => {
  const { version: own } = JSON.parse(readFileSync(join(__dirname, '..', '..', 'package.json'), 'utf8')) as { version: string }
  expect(version).toBe(own)
})

it.each<[string, string | undefined]>([
  ['no package.json', undefined],
  ["another's package.json", '{"name":"some-service","version":"3.1.4"}'],
  ['a package.json that is none', 'null'],
])('a library that a bundler has taken apart is told so: %s', (_, text) => {
  rmSync(join(folder, 'package.json'), { force: true })
  if (text !== undefined) writeFileSync(join(folder, 'package.json'), text)
  expect(() => versionIn(folder)).toThrowCode('ERR_ADDON_NOT_FOUND', /a bundler has taken it apart \(leave it out of the bundle/)
})
