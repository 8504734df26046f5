/** How many pages the KV cache has. */
import { TensorRTError } from '../errors'
import { type Graph, kvPageBytes } from '../models'

const DEFAULT_KV_BYTES = 2 ** 30
const MAX_PAGES = 2 ** 31 - 1

export interface KvSizing {
  pageSize: number
  numPages: number | undefined
  kvCacheMemory: number | undefined
  maxSequences: number
  /** Bytes that may be used where the caller says nothing. */
  freeBytes: number
}

/**
 * Pages of the KV pool: as many as given, or as fit into the memory given; else a full context for each sequence, but
 * no more than 1 GiB or a quarter of what is free. One full context always has room, as far as nothing else is asked
 * for.
 *
 * @throws ERR_INVALID_ARGUMENT when the memory given does not hold a single page
 */
export function kvPages(graph: Graph, elementBytes: number, sizing: KvSizing): number {
  const { pageSize, numPages, kvCacheMemory, maxSequences, freeBytes } = sizing
  if (numPages !== undefined) return numPages
  const pageBytes = kvPageBytes(graph, pageSize, elementBytes)
  if (kvCacheMemory !== undefined) return pagesWithin(kvCacheMemory, pageBytes)
  const contextPages = Math.ceil(graph.maxPositions / pageSize)
  const affordable = Math.floor(Math.min(DEFAULT_KV_BYTES, freeBytes / 4) / pageBytes)
  return Math.min(Math.max(contextPages, Math.min(affordable, contextPages * maxSequences)), MAX_PAGES)
}

/** @throws ERR_INVALID_ARGUMENT when the memory given does not hold a single page */
export function pagesWithin(kvCacheMemory: number, pageBytes: number): number {
  const pages = Math.floor(kvCacheMemory / pageBytes)
  if (pages >= 1) return Math.min(pages, MAX_PAGES)
  throw new TensorRTError(
    'ERR_INVALID_ARGUMENT',
    `"kvCacheMemory" is ${kvCacheMemory} bytes, and one page of the KV cache takes ${pageBytes}`,
  )
}
