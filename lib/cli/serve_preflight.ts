/** What would keep a server from its work, looked for before the model is loaded: that may take minutes. */
import { closeSync, constants, openSync, readFileSync } from 'node:fs'
import { createServer as createNetServer, type Server as NetServer } from 'node:net'
import { createSecureContext } from 'node:tls'
import { TensorRTError } from '../errors'
import type { ServeConfig } from './serve_config'

export interface Tls {
  cert: string
  key: string
}

/**
 * @returns what TLS is served with
 * @throws ERR_INVALID_ARGUMENT, ERR_IO
 */
export async function preflight({ host, port, tls: files, metrics, accessLog }: ServeConfig): Promise<{ tls: Tls | undefined }> {
  const tls = files === undefined ? undefined : { cert: readPem(files.cert), key: readPem(files.key) }
  if (tls !== undefined) assertPair(tls)
  if (accessLog !== undefined && accessLog !== 'stdout' && accessLog !== 'stderr') assertWritable(accessLog)
  const places = [{ host, port }, ...(metrics.enabled && metrics.port !== undefined ? [{ host: metrics.host, port: metrics.port }] : [])]
  await assertFree(places)
  return { tls }
}

function readPem(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (cause) {
    throw new TensorRTError('ERR_IO', `${path} cannot be read: ${(cause as Error).message}`, { cause })
  }
}

function assertPair(tls: Tls): void {
  try {
    createSecureContext(tls)
  } catch (cause) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"tls" cannot be used: ${(cause as Error).message}`, { cause })
  }
}

function assertWritable(path: string): void {
  try {
    closeSync(openSync(path, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NONBLOCK, 0o640))
  } catch (cause) {
    // A pipe whose reader is yet to come.
    if ((cause as NodeJS.ErrnoException).code === 'ENXIO') return
    throw new TensorRTError('ERR_IO', `The access log cannot be written: ${(cause as Error).message}`, { cause })
  }
}

/** All at once, so that two that are one are told, too. */
async function assertFree(places: readonly { host: string; port: number }[]): Promise<void> {
  const trials: NetServer[] = []
  try {
    for (const [index, place] of places.entries()) {
      const own = place.port !== 0 && places.slice(0, index).some(({ port }) => port === place.port)
      trials.push(await listen(place, own ? 'metrics need a port of their own' : 'another process listens there; give another port, or 0 for any that is free'))
    }
  } finally {
    await Promise.all(trials.map((trial) => new Promise((resolve) => trial.close(resolve))))
  }
}

function listen({ host, port }: { host: string; port: number }, whereTaken: string): Promise<NetServer> {
  const trial = createNetServer((socket) => socket.destroy())
  return new Promise((resolve, reject) => {
    trial.once('error', (cause: NodeJS.ErrnoException) => {
      const hint = cause.code === 'EADDRINUSE' ? whereTaken : undefined
      reject(new TensorRTError('ERR_IO', `Listening at ${host}:${port} failed: ${cause.message}`, { cause, hint }))
    })
    trial.listen({ host, port }, () => resolve(trial))
  })
}
