/** Every route of the server. */
import type { Exchange } from '../http/exchange'
import type { Services } from '../services'
import { chatCompletions } from './chat'
import { completions } from './completions'
import { embeddings } from './embeddings'
import { live, metrics, ready, showVersion } from './health'
import { listModels, showModel } from './model_list'
import { detokenize, tokenize } from './tokenize'

export interface Route {
  method: 'GET' | 'POST'
  /** As hono writes it. */
  path: string
  /** As logs and metrics name it. */
  name: string
  handle(exchange: Exchange, services: Services, params: Readonly<Record<string, string>>): Response | Promise<Response>
}

const route = (method: Route['method'], path: string, handle: Route['handle'], name = path): Route => ({ method, path, name, handle })

export const ROUTES: readonly Route[] = [
  route('GET', '/v1/models', listModels),
  // Names of models may have slashes.
  route('GET', '/v1/models/:model{.+}', showModel, '/v1/models/:model'),
  route('POST', '/v1/completions', completions),
  route('POST', '/v1/chat/completions', chatCompletions),
  route('POST', '/v1/embeddings', embeddings),
  route('POST', '/tokenize', tokenize),
  route('POST', '/detokenize', detokenize),
  route('GET', '/health', ready),
  route('GET', '/health/live', live),
  route('GET', '/health/ready', ready),
  route('GET', '/version', showVersion),
  route('GET', '/metrics', metrics),
]
