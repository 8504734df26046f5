/** Runs programs as their users do: in a process each. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

export const root = resolve(__dirname, '..', '..')

export interface Outcome {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

export interface ExecuteOptions {
  cwd?: string
  env?: NodeJS.ProcessEnv
  /** Written to stdin, which is closed then. Default: nothing. */
  input?: string
  /** After this time the program is killed, and stderr says so. */
  limitMs?: number
}

/** A program that still runs; `ended` resolves when it has ended and all its output has arrived. */
export interface Running {
  child: ChildProcessWithoutNullStreams
  ended: Promise<Outcome>
  /** Resolves when stdout or stderr hold what is looked for. Rejects when the program ends before. */
  shows(where: 'stdout' | 'stderr', pattern: RegExp): Promise<void>
}

export function start(args: readonly string[], options: Omit<ExecuteOptions, 'input'> = {}): Running {
  const { cwd = root, env, limitMs = 200_000 } = options
  const child = spawn(process.execPath, args, { cwd, env: { ...process.env, ...env } })
  const text = { stdout: '', stderr: '' }
  let over = false
  let watchers: (() => void)[] = []
  const wake = (): void => {
    const waiting = watchers
    watchers = []
    for (const watcher of waiting) watcher()
  }
  for (const stream of ['stdout', 'stderr'] as const) {
    child[stream].setEncoding('utf8').on('data', (piece: string) => {
      text[stream] += piece
      wake()
    })
  }
  // The program may end without reading what it is given.
  child.stdin.on('error', () => undefined)
  const timer = setTimeout(() => {
    text.stderr += '\n[the test killed it: it hung]'
    child.kill('SIGKILL')
  }, limitMs)
  const ended = new Promise<Outcome>((done, fail) => {
    child.on('error', fail)
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      over = true
      wake()
      done({ code, signal, ...text })
    })
  })
  const shows = async (where: 'stdout' | 'stderr', pattern: RegExp): Promise<void> => {
    while (!pattern.test(text[where])) {
      if (over) throw new Error(`The program ended without ${pattern} on ${where}:\n${text.stdout}\n${text.stderr}`)
      await new Promise<void>((next) => watchers.push(next))
    }
  }
  return { child, ended, shows }
}

export function execute(args: readonly string[], { input = '', ...options }: ExecuteOptions = {}): Promise<Outcome> {
  const { child, ended } = start(args, options)
  child.stdin.end(input)
  return ended
}

/** The script of a package's command, for this Node to run. */
export function tool(name: string, bin = name): string {
  const folder = join(root, 'node_modules', name)
  if (!existsSync(folder)) throw new Error(`${name} is not installed`)
  const { bin: bins } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { bin: string | Record<string, string> }
  return join(folder, typeof bins === 'string' ? bins : bins[bin]!)
}
