/** Which answers are under way on which connection. One at a time has the socket; those behind it, of pipelined requests, have none. */
import type { ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'

export class Connections {
  private readonly answers = new WeakMap<Duplex, Set<ServerResponse>>()

  /** An answer to a request that came over a socket is under way, until it is closed. */
  begin(socket: Duplex, outgoing: ServerResponse): void {
    let under = this.answers.get(socket)
    if (under === undefined) {
      under = new Set()
      this.answers.set(socket, under)
      socket.once('close', closeWaiting.bind(undefined, under))
    }
    const answers = under.add(outgoing)
    outgoing.once('close', () => answers.delete(outgoing))
  }

  isAnswering(socket: Duplex): boolean {
    return (this.answers.get(socket)?.size ?? 0) > 0
  }
}

/** The end of a connection is told to the answer that has the socket, by Node, and to no other. */
function closeWaiting(answers: ReadonlySet<ServerResponse>): void {
  for (const outgoing of answers) {
    if (outgoing.socket !== null) continue
    outgoing.destroy()
    outgoing.emit('close')
  }
}
