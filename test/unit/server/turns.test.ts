import type { IncomingMessage, ServerResponse } from 'node:http'
import { describe, expect, it } from 'vitest'
import { Turns } from '../../../lib/server/http/turns'

/** One turn of the event loop. */
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(() => setImmediate(resolve)))

function make(handleMs = 0) {
  const state = { now: 0, left: 0, handled: [] as { name: string; at: number; waitedMs: number }[] }
  const turns = new Turns(
    ({ incoming, cameAt }) => {
      state.handled.push({ name: incoming.url!, at: state.now, waitedMs: state.now - cameAt })
      state.now += handleMs
    },
    () => state.left++,
    () => state.now,
  )
  const add = (name: string): { destroyed: boolean } => {
    const outgoing = { destroyed: false }
    turns.add({ url: name } as IncomingMessage, outgoing as ServerResponse)
    return outgoing
  }
  const names = (): string => state.handled.map(({ name }) => name).join('')
  const settle = async (): Promise<void> => {
    for (let i = 0; i < 200 && turns.size > 0; i++) await turn()
  }
  return { state, turns, add, names, settle }
}

describe('Turns', () => {
  it('handles in order, later, and not who has left', async () => {
    const { add, names, settle, state, turns } = make()
    add('a')
    const b = add('b')
    add('c')
    expect(names()).toBe('')
    expect(turns.size).toBe(3)
    b.destroyed = true
    await settle()
    expect(names()).toBe('ac')
    expect(state.left).toBe(1)
    expect(turns.size).toBe(0)
    add('d')
    await settle()
    expect(names()).toBe('acd')
  })

  it('lets new connections go first, for some turns', async () => {
    const { add, names, settle, state, turns } = make()
    add('a')
    for (let i = 0; i < 10; i++) {
      turns.onConnection()
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(names()).toBe('')
    state.now += 6
    turns.onConnection()
    await settle()
    expect(names()).toBe('a')
  })

  it('a turn takes some milliseconds, so that others have theirs', async () => {
    const { add, settle, state } = make(1)
    for (let i = 0; i < 12; i++) add('x')
    await new Promise((resolve) => setImmediate(resolve))
    expect(state.handled.length).toBe(5)
    await settle()
    expect(state.handled.length).toBe(12)
  })

  it('far behind, every other one is the newest, and none is forgotten', async () => {
    const { add, names, settle, state } = make()
    for (const name of 'abcdef') add(name)
    state.now = 99
    add('g')
    state.now = 150
    await settle()
    // What came at 99 is not late: once the others are gone, order is kept.
    expect(names()).toBe('gafbecd')
    expect(state.handled[0]!.waitedMs).toBe(51)
    expect(state.handled[1]!.waitedMs).toBe(150)
  })
})
