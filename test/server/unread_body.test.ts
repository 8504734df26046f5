/** A request that is answered before its body was read: the connection goes on once the rest has come, and ends where that takes long. */
import { connect, type Socket } from 'node:net'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Fixture, startServer, until } from './support'

const LIMIT = 1000
let fixture: Fixture
const sockets: Socket[] = []
beforeAll(async () => {
  fixture = await startServer({ limits: { maxBodyBytes: LIMIT } })
})
afterAll(async () => {
  for (const socket of sockets) socket.destroy()
  expect(fixture.failures).toEqual([])
  await fixture.close()
})

function open(): { socket: Socket; statuses: () => string[]; closed: () => boolean } {
  const socket = connect(fixture.server.address!.port, '127.0.0.1')
  sockets.push(socket)
  let text = ''
  let closed = false
  socket.on('data', (part) => (text += part.toString('latin1'))).on('close', () => (closed = true))
  socket.on('error', () => {})
  return { socket, statuses: () => [...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status!), closed: () => closed }
}

/** The host is known from the second request on: from then on a route is reached without hono. */
const small = JSON.stringify({ prompt: 'Once', max_tokens: 1 })
const head = (length: number): string => `POST /v1/completions HTTP/1.1\r\nhost: unread\r\ncontent-type: application/json\r\ncontent-length: ${length}\r\n\r\n`
const decent = head(small.length) + small

it('what is left of it is read away, and the next request of the connection is answered', async () => {
  const { socket, statuses, closed } = open()
  socket.write(decent)
  await until(() => statuses().length === 1, 'a first answer')
  // More than the server's socket reads at once, and than a stream holds.
  const length = 1000 * LIMIT
  socket.write(head(length) + 'x'.repeat(length) + decent)
  await until(() => statuses().length === 3 || closed(), 'the answer behind it')
  expect(statuses()).toEqual(['200', '413', '200'])
})

it('a connection whose body comes for ever is closed', async () => {
  const { socket, statuses, closed } = open()
  socket.write(decent)
  await until(() => statuses().length === 1, 'a first answer')
  socket.write(head(1000 * LIMIT))
  // Node itself waits for as long as something comes.
  const trickle = setInterval(() => socket.write('x'), 20)
  try {
    await until(closed, 'the end of the connection')
  } finally {
    clearInterval(trickle)
  }
  expect(statuses()).toEqual(['200', '413'])
})
