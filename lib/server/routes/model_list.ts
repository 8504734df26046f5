/** GET /v1/models and /v1/models/:model. */
import type { Exchange } from '../http/exchange'
import type { ServedModel } from '../registry'
import type { Services } from '../services'

function describe(served: ServedModel, id: string): unknown {
  return {
    id,
    object: 'model',
    created: served.created,
    owned_by: 'node-tensorrt',
    root: served.name,
    parent: id === served.name ? null : served.name,
    max_model_len: served.llm.info.maxPositions,
  }
}

export function listModels(exchange: Exchange, { registry }: Services): Response {
  const data = registry.models.flatMap((served) => served.names.map((name) => describe(served, name)))
  return exchange.json(200, { object: 'list', data })
}

/** @throws ApiError 404 */
export function showModel(exchange: Exchange, { registry }: Services, { model }: Readonly<Record<string, string>>): Response {
  return exchange.json(200, describe(registry.find(model!), model!))
}
