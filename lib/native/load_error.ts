/**
 * Says why a binary that exists does not load, and what to do about it. The system's message names the symptom only, and in
 * the words of a dynamic linker.
 */
import { TensorRTError } from '../errors'
import { inspectElf } from './elf'

/** What the machine is, as far as it matters to loading. */
export interface HostFacts {
  platform: string
  arch: string
  /** glibc's version; undefined on musl and outside Linux. */
  glibc: string | undefined
  node: string
  nodeApi: string
}

export function hostFacts(): HostFacts {
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } }
  return {
    platform: process.platform,
    arch: process.arch,
    glibc: header.glibcVersionRuntime,
    node: process.versions.node,
    nodeApi: process.versions.napi ?? 'none',
  }
}

interface Explanation {
  /** What is wrong, to stand after a colon. */
  reason: string
  hint: string
}

const BUILD_HERE = 'build it on this machine: npx node-gyp rebuild in the package folder'

/** @internal exported for its tests */
export function explainLoadError(file: string, error: unknown, host: HostFacts): Explanation {
  const { message, code } = error as { message?: string; code?: string }
  const text = message ?? String(error)

  if (code === 'ERR_DLOPEN_DISABLED' || code === 'ERR_ACCESS_DENIED') {
    return {
      reason: 'Node does not permit native addons in this process',
      hint: 'run without --no-addons, and with --allow-addons under the permission model',
    }
  }
  const version = /version [`'](GLIBC|GLIBCXX|CXXABI)_([\w.]+)' not found/.exec(text)
  if (version !== null) {
    const library = version[1] === 'GLIBC' ? 'glibc' : 'libstdc++'
    const own = library === 'glibc' && host.glibc !== undefined ? `; this system has ${host.glibc}` : ''
    return {
      reason: `it needs ${library} with ${version[1]}_${version[2]}${own}`,
      hint: `the prebuilt binary needs glibc 2.28 or later (Debian 10, Ubuntu 20.04, RHEL 8 and up); otherwise ${BUILD_HERE}`,
    }
  }
  if (host.platform === 'linux') {
    const elf = inspectElf(file)
    if (elf === undefined || !elf.complete) {
      return {
        reason: elf === undefined ? 'the file is not a Linux binary' : 'the file is cut short',
        hint: 'reinstall the package; where a checkout was copied from another system, run npm run build',
      }
    }
    if (elf.arch !== host.arch) {
      return {
        reason: `it was built for ${elf.arch}, and this Node runs on ${host.arch}`,
        hint: `install on the machine that runs it, or ${BUILD_HERE}`,
      }
    }
    if (host.glibc === undefined) {
      return {
        reason: 'it was built for glibc, and this system has musl (Alpine Linux)',
        hint: 'use an image based on glibc, such as node:20-slim',
      }
    }
  }
  const nodeApi = /requires Node-API version (\d+)/.exec(text)
  if (nodeApi !== null || /undefined symbol: napi_/.test(text)) {
    return {
      reason: `it needs ${nodeApi === null ? 'a newer Node-API' : `Node-API ${nodeApi[1]}`}, and Node ${host.node} has ${host.nodeApi}`,
      hint: 'use Node 20.19 or later',
    }
  }
  if (/NODE_MODULE_VERSION|did not self-register/.test(text)) {
    return { reason: 'it was built for another version of Node', hint: 'run npm run build:native, or reinstall the package' }
  }
  const library = /([\w.+-]+\.so[\w.]*): cannot open shared object file/.exec(text)
  if (library !== null) {
    return {
      reason: `the shared library ${library[1]} is missing`,
      hint: `install the system package that has ${library[1]}, or add its folder to LD_LIBRARY_PATH`,
    }
  }
  if (/failed to map segment|Permission denied|Operation not permitted/.test(text)) {
    return {
      reason: 'the system does not let Node map or read the file',
      hint: 'look at the permissions of the file, and whether its file system is mounted noexec',
    }
  }
  return { reason: text, hint: `reinstall the package, or ${BUILD_HERE}` }
}

export function addonLoadFailed(file: string, error: unknown): TensorRTError {
  const { reason, hint } = explainLoadError(file, error, hostFacts())
  return new TensorRTError('ERR_ADDON_LOAD_FAILED', `The native addon ${file} does not load: ${reason}`, { hint, cause: error })
}
