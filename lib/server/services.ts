/** What routes work with. */
import type { CheckedServerOptions } from './options'
import type { ModelRegistry } from './registry'

export interface Services extends CheckedServerOptions {
  registry: ModelRegistry
  /** Why no new work is taken; undefined while it is. */
  readonly draining: boolean
}
