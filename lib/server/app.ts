/** The application: each request becomes an exchange, goes past security to its route, and is answered whatever happens. */
import { type Context, Hono } from 'hono'
import { ApiError, refusalError, toApiError } from './errors'
import { Exchange, type NodePair } from './http/exchange'
import { type Route, ROUTES } from './routes'
import type { Services } from './services'

/** What the server's own listener hands over; requests from elsewhere have none. */
export const NODE_PAIR = Symbol('node-tensorrt.node-pair')

interface Env {
  Bindings: { [NODE_PAIR]?: NodePair }
}

/** A request that came by `fetch` has no environment at all. */
function pairOf({ env }: Context<Env>): NodePair | undefined {
  return (env as Env['Bindings'] | undefined)?.[NODE_PAIR]
}

/** Most wrong addresses are a base URL with one `/v1` too many or too few, which the path shows. */
const notFound = ({ method, request }: Exchange): never => {
  const path = new URL(request.url).pathname.slice(0, 200)
  throw new ApiError(404, 'invalid_request_error', 'not_found', `There is no route ${method} ${path}`)
}

/** @param live holds the exchanges under way; @param onEnd is called when one has left it */
export function createApp(services: Services, live: Set<Exchange>, onEnd: () => void): Hono<Env> {
  const app = new Hono<Env>({ strict: false })
  const { telemetry } = services

  const report = (exchange: Exchange): void => {
    live.delete(exchange)
    telemetry?.http({
      requestId: exchange.id,
      method: exchange.method,
      route: exchange.route,
      status: exchange.status,
      durationMs: performance.now() - exchange.startedAt,
      responseBytes: exchange.responseBytes,
      keyName: exchange.caller.keyName,
      model: exchange.served?.name,
      backend: (exchange.served ?? services.registry.models[0]!).llm.backend,
      errorCode: exchange.errorCode,
      aborted: exchange.aborted,
      usage: exchange.usage,
    })
    onEnd()
  }

  const serve = async (
    request: Request,
    node: NodePair | undefined,
    name: string,
    handle: Route['handle'],
    params: Readonly<Record<string, string>>,
  ): Promise<Response> => {
    const exchange = new Exchange(request, node, services.stallTimeoutMs, report)
    live.add(exchange)
    telemetry?.httpStarted()
    exchange.route = name
    try {
      if (services.security !== undefined) {
        const caller = await services.security.authenticate(exchange)
        if ('refusal' in caller) throw refusalError(caller.refusal)
        exchange.caller = caller
      }
      return await handle(exchange, services, params)
    } catch (error) {
      const answer = toApiError(error)
      // What the route knows the reason of is an ApiError by now, and was told of where it happened.
      if (answer.status === 500 && answer !== error) services.onError(error, exchange.id)
      return exchange.error(answer)
    }
  }

  for (const { method, path, name, handle } of ROUTES) {
    app.on(method, path, (c) => serve(c.req.raw, pairOf(c), name, handle, c.req.param()))
  }
  const methods = new Map<string, string[]>()
  for (const { method, path } of ROUTES) methods.set(path, [...(methods.get(path) ?? []), ...(method === 'GET' ? ['GET', 'HEAD'] : [method])])
  for (const { path, name } of ROUTES) {
    const allow = methods.get(path)!.join(', ')
    const refuse = (): never => {
      throw new ApiError(405, 'invalid_request_error', 'method_not_allowed', `This route takes ${allow}`, null, { allow })
    }
    app.all(path, (c) => serve(c.req.raw, pairOf(c), name, refuse, {}))
  }
  app.notFound((c) => serve(c.req.raw, pairOf(c), 'other', notFound, {}))
  return app
}
