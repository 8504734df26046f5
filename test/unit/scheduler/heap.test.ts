import { expect, it } from 'vitest'
import { IndexedHeap } from '../../../lib/scheduler/heap'
import fc from '../../support/fast_check'

interface Item {
  key: number
  index: number
}

it('pops in order whatever was pushed, removed and re-ordered before', () => {
  const operation = fc.record({
    kind: fc.constantFrom('push', 'push', 'pop', 'remove', 'update'),
    key: fc.integer({ min: 0, max: 20 }),
    pick: fc.nat(),
  })
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 80 }), (operations) => {
      const heap = new IndexedHeap<Item>((a, b) => a.key < b.key, 'index')
      const model: Item[] = []
      for (const { kind, key, pick } of operations) {
        const item = model[pick % Math.max(model.length, 1)]
        if (kind === 'push') {
          const fresh = { key, index: -1 }
          model.push(fresh)
          heap.push(fresh)
        } else if (item !== undefined && kind === 'update') {
          item.key = key
          heap.update(item)
        } else if (item !== undefined) {
          const gone = kind === 'pop' ? heap.pop()! : item
          if (kind === 'remove') heap.remove(gone)
          expect(gone.index).toBe(-1)
          model.splice(model.indexOf(gone), 1)
          if (kind === 'pop') for (const other of model) expect(other.key).toBeGreaterThanOrEqual(gone.key)
        }
        expect(heap.size).toBe(model.length)
        expect(heap.peek()?.key).toBe(model.length === 0 ? undefined : Math.min(...model.map((other) => other.key)))
        for (const other of model) expect(heap.has(other)).toBe(true)
      }
    }),
  )
})

it('ignores items that it does not hold', () => {
  const heap = new IndexedHeap<Item>((a, b) => a.key < b.key, 'index')
  heap.remove({ key: 1, index: -1 })
  heap.update({ key: 1, index: -1 })
  expect(heap.pop()).toBeUndefined()
})
