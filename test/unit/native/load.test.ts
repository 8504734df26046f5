import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { TensorRTError } from '../../../lib/errors'
import { ADDON_PATH_VARIABLE, loadAddon } from '../../../lib/native'
import { loadFrom } from '../../../lib/native/load'
import { explainLoadError, hostFacts } from '../../../lib/native/load_error'

const root = resolve(__dirname, '..', '..', '..')
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
const good = (): string => loadAddon().path

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-load-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))
afterEach(() => vi.unstubAllEnvs())

/** Compiles C text to a shared object. */
function compile(name: string, source: string, ...flags: string[]): string {
  const file = join(folder, name)
  const input = `${file}.c`
  writeFileSync(input, source)
  execFileSync('cc', ['-shared', '-fPIC', '-o', file, input, ...flags])
  return file
}

function loadFile(file: string): TensorRTError {
  vi.stubEnv(ADDON_PATH_VARIABLE, file)
  try {
    loadFrom(root)
  } catch (error) {
    expect(error).toBeInstanceOf(TensorRTError)
    return error as TensorRTError
  }
  throw new Error(`${file} was loaded`)
}

/** The part of an addon that returns `exports` with the four properties. */
const addonSource = (addonVersion: string): string => `
  #include <stddef.h>
  typedef struct env* napi_env; typedef struct value* napi_value; typedef struct info* napi_info;
  int napi_create_string_utf8(napi_env, const char*, size_t, napi_value*);
  int napi_create_function(napi_env, const char*, size_t, napi_value (*)(napi_env, napi_info), void*, napi_value*);
  int napi_set_named_property(napi_env, napi_value, const char*, napi_value);
  static napi_value nothing(napi_env env, napi_info info) { return NULL; }
  napi_value napi_register_module_v1(napi_env env, napi_value exports) {
    napi_value value;
    napi_create_string_utf8(env, "${addonVersion}", -1, &value);
    napi_set_named_property(env, exports, "version", value);
    napi_create_function(env, "f", -1, nothing, NULL, &value);
    napi_set_named_property(env, exports, "cpuFeatures", value);
    napi_set_named_property(env, exports, "createCpuBackend", value);
    return exports;
  }`

describe('finding', () => {
  it('loads what the environment names, whatever its name', () => {
    const file = join(folder, 'renamed.bin')
    copyFileSync(good(), file)
    vi.stubEnv(ADDON_PATH_VARIABLE, file)
    expect(loadFrom(root)).toMatchObject({ path: file, addon: { version } })
  })

  it('looks nowhere else when the named file is missing', () => {
    expect(loadFile(join(folder, 'absent.node'))).toMatchObject({ code: 'ERR_ADDON_NOT_FOUND' })
  })

  it('lists the places where nothing was', () => {
    const empty = mkdtempSync(join(folder, 'empty-'))
    vi.stubEnv(ADDON_PATH_VARIABLE, '')
    expect(() => loadFrom(empty)).toThrow(expect.objectContaining({ code: 'ERR_ADDON_NOT_FOUND' }))
    expect(() => loadFrom(empty)).toThrow(join(empty, 'prebuilds'))
    expect(() => loadFrom(empty)).toThrow(join(empty, 'build', 'Debug', 'node-tensorrt.node'))
  })

  it.each([
    ['prebuilds', ['prebuilds', `${process.platform}-${process.arch}`]],
    ['build/Release', ['build', 'Release']],
    ['a development build', ['build', 'cmake', 'Debug']],
  ])('finds %s, and reports it when it is broken instead of going on', (_, path) => {
    const home = mkdtempSync(join(folder, 'home-'))
    const place = join(home, ...path)
    mkdirSync(place, { recursive: true })
    writeFileSync(join(home, 'package.json'), JSON.stringify({ name: 'node-tensorrt', version }))
    vi.stubEnv(ADDON_PATH_VARIABLE, '')
    writeFileSync(join(place, 'node-tensorrt.node'), 'cut')
    expect(() => loadFrom(home)).toThrow(expect.objectContaining({ code: 'ERR_ADDON_LOAD_FAILED' }))

    copyFileSync(good(), join(place, 'node-tensorrt.node'))
    expect(loadFrom(home).path).toBe(join(place, 'node-tensorrt.node'))
  })
})

describe.runIf(process.platform === 'linux')('a file that does not load', () => {
  it('for want of a newer glibc', () => {
    const map = join(folder, 'libc.map')
    writeFileSync(map, 'GLIBC_2.99 { global: nt_from_the_future; };')
    const libc = compile('libc.so.6', 'void nt_from_the_future(void) {}', '-nostdlib', '-Wl,-soname,libc.so.6', `-Wl,--version-script=${map}`)
    const file = compile('future.node', 'void nt_from_the_future(void); void f(void) { nt_from_the_future(); }', '-nostdlib', libc)
    const error = loadFile(file)
    expect(error.code).toBe('ERR_ADDON_LOAD_FAILED')
    expect(error.message).toContain(`needs glibc with GLIBC_2.99; this system has ${hostFacts().glibc}`)
    expect(error.hint).toContain('2.28')
    expect((error.cause as Error).message).toContain('GLIBC_2.99')
  })

  it('for want of a shared library', () => {
    const library = compile('libnt_absent.so', 'void nt_absent(void) {}', '-Wl,-soname,libnt_absent.so.3')
    const file = compile('needy.node', 'void nt_absent(void); void f(void) { nt_absent(); }', library)
    rmSync(library)
    expect(loadFile(file).message).toContain('the shared library libnt_absent.so.3 is missing')
  })

  it('on another processor', () => {
    const file = join(folder, 'arm.node')
    const binary = readFileSync(good())
    binary.writeUInt16LE(process.arch === 'arm64' ? 62 : 183, 18)
    writeFileSync(file, binary)
    expect(loadFile(file).message).toMatch(/it was built for (arm64|x64), and this Node runs on/)
  })

  it.each(['text', 'nothing', 'a cut binary'])('that is %s', (what) => {
    const file = join(folder, 'odd.node')
    copyFileSync(good(), file)
    if (what === 'text') writeFileSync(file, 'version https://git-lfs.github.com/spec/v1\noid sha256:00\n')
    else truncateSync(file, what === 'nothing' ? 0 : 4096)
    const error = loadFile(file)
    expect(error.code).toBe('ERR_ADDON_LOAD_FAILED')
    expect(error.message).toContain(what === 'a cut binary' ? 'cut short' : 'not a Linux binary')
  })

  it('as its Node-API is too new', () => {
    const file = compile('napi.node', 'void napi_from_the_future(void); void napi_register_module_v1(void) { napi_from_the_future(); }', '-Wl,-z,now')
    expect(loadFile(file).message).toContain(`and Node ${process.versions.node} has ${process.versions.napi}`)
  })

  it('and is some other addon', () => {
    expect(loadFile(compile('plain.node', 'int answer(void) { return 42; }'))).toMatchObject({ code: 'ERR_ADDON_LOAD_FAILED' })
    const foreign = 'void* napi_register_module_v1(void* env, void* exports) { return exports; }'
    expect(loadFile(compile('foreign.node', foreign)).message).toContain('some other addon')
  })

  it('of another version of the package', () => {
    const error = loadFile(compile('old.node', addonSource('0.0.1')))
    expect(error.code).toBe('ERR_VERSION_MISMATCH')
    expect(error.message).toContain('0.0.1')
    expect(error.message).toContain(version)
  })

  it('in a process that permits no addons', () => {
    const script = `
      const { loadFrom } = require(${JSON.stringify(join(root, 'lib', 'native', 'load.ts'))})
      try { loadFrom(${JSON.stringify(root)}) } catch (error) { console.log(error.code, error.message) }`
    const text = execFileSync(process.execPath, ['--no-addons', '--require', 'tsx/cjs', '-e', script], { cwd: root, encoding: 'utf8' })
    expect(text).toContain('ERR_ADDON_LOAD_FAILED')
    expect(text).toContain('does not permit native addons')
  })

  it('on musl', () => {
    const musl = { ...hostFacts(), glibc: undefined }
    const error = new Error('Error loading shared library ld-linux-x86-64.so.2: No such file or directory (needed by x.node)')
    expect(explainLoadError(good(), error, musl)).toMatchObject({ reason: expect.stringContaining('musl'), hint: expect.stringContaining('node:20-slim') })
  })

  it('from a file system that forbids it', () => {
    const error = new Error('x.node: failed to map segment from shared object')
    expect(explainLoadError(good(), error, hostFacts()).hint).toContain('noexec')
  })
})
