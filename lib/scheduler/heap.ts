/** Names of the number fields that an item of type `T` has. */
type NumberField<T> = { [K in keyof T]: T[K] extends number ? K : never }[keyof T]

/**
 * A binary min-heap that can remove and re-order any item in O(log n), because each item knows its place: the heap
 * keeps it in the item's own number field `indexField` (-1 = not in this heap), so there is no side table and no
 * garbage.
 */
export class IndexedHeap<T extends object> {
  private readonly items: T[] = []

  constructor(
    private readonly before: (a: T, b: T) => boolean,
    private readonly indexField: NumberField<T>,
  ) {}

  get size(): number {
    return this.items.length
  }

  /** The first item, left in place. */
  peek(): T | undefined {
    return this.items[0]
  }

  has(item: T): boolean {
    return this.indexOf(item) >= 0
  }

  push(item: T): void {
    this.items.push(item)
    this.siftUp(item, this.items.length - 1)
  }

  pop(): T | undefined {
    const first = this.items[0]
    if (first !== undefined) this.remove(first)
    return first
  }

  /** Does nothing when the item is not in the heap. */
  remove(item: T): void {
    const index = this.indexOf(item)
    if (index < 0) return
    const last = this.items.pop() as T
    this.place(item, -1)
    if (last !== item) {
      this.items[index] = last
      this.place(last, index)
      this.update(last)
    }
  }

  /** To be called after a change to what the item is ordered by. */
  update(item: T): void {
    const index = this.indexOf(item)
    if (index < 0) return
    this.siftUp(item, index)
    this.siftDown(item, this.indexOf(item))
  }

  /** In no particular order. */
  values(): IterableIterator<T> {
    return this.items.values()
  }

  private indexOf(item: T): number {
    return item[this.indexField] as number
  }

  private place(item: T, index: number): void {
    ;(item as Record<NumberField<T>, number>)[this.indexField] = index
  }

  private siftUp(item: T, start: number): void {
    const { items } = this
    let index = start
    while (index > 0) {
      const parent = (index - 1) >> 1
      const above = items[parent]!
      if (!this.before(item, above)) break
      items[index] = above
      this.place(above, index)
      index = parent
    }
    items[index] = item
    this.place(item, index)
  }

  private siftDown(item: T, start: number): void {
    const { items } = this
    let index = start
    for (;;) {
      let child = 2 * index + 1
      if (child >= items.length) break
      if (child + 1 < items.length && this.before(items[child + 1]!, items[child]!)) child++
      const below = items[child]!
      if (!this.before(below, item)) break
      items[index] = below
      this.place(below, index)
      index = child
    }
    items[index] = item
    this.place(item, index)
  }
}
