/** A process of a benchmark's own: it says when it is ready, answers one question at a time, and ends when it is told to. */
import { type ChildProcess, fork } from 'node:child_process'

export class Peer<Ready, Ask extends object> {
  private constructor(
    private readonly process: ChildProcess,
    /** Its first message. */
    readonly ready: Ready,
  ) {}

  /** @param profile a folder that gets `<name>.cpuprofile` of it; undefined: none */
  static async start<Ready, Ask extends object>(file: string, args: readonly string[], profile: string | undefined, name: string): Promise<Peer<Ready, Ask>> {
    const profiled = profile === undefined ? [] : ['--cpu-prof', '--cpu-prof-dir', profile, '--cpu-prof-name', `${name}.cpuprofile`]
    const child = fork(file, args, { execArgv: [...process.execArgv, ...profiled] })
    return new Peer(child, await next<Ready>(child))
  }

  /** @throws (as a rejection) where the process ends without an answer */
  ask<T>(ask: Ask): Promise<T> {
    const answer = next<T>(this.process)
    this.process.send(ask)
    return answer
  }

  end(): Promise<void> {
    const ended = new Promise<void>((resolve) => this.process.once('exit', () => resolve()))
    this.process.send({ end: true })
    return ended
  }
}

function next<T>(child: ChildProcess): Promise<T> {
  return new Promise((resolve, reject) => {
    const onExit = (code: number | null): void => reject(new Error(`A process ended with ${code}`))
    child.once('exit', onExit)
    child.once('message', (answer) => {
      child.off('exit', onExit)
      resolve(answer as T)
    })
  })
}
