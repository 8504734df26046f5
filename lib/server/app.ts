/** The application: each request becomes an exchange, goes past security to its route, and is answered whatever happens. */
import { type Context, Hono } from 'hono'
import { ApiError, refusalError, toApiError } from './errors'
import { Exchange, type NodePair } from './http/exchange'
import { partAnswer } from './http/part_answer'
import { discardBody } from './http/unread'
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
  const path = request === undefined ? '' : new URL(request.url).pathname.slice(0, 200)
  throw new ApiError(404, 'invalid_request_error', 'not_found', `There is no route ${method} ${path}`)
}

/** Hosts that are remembered as valid. */
const MAX_HOSTS = 64

export interface App {
  /** Answers any request; those of the server's own listener bring their {@link NODE_PAIR}. */
  hono: Hono<Env>
  /**
   * Answers one for an exact path of a route, without a `Request` and middleware, which take a fifth of what a request costs.
   * @returns false: it is for {@link hono}
   */
  answers(node: NodePair): boolean
}

/** @param live holds the exchanges under way; @param onEnd is called when one has left it */
export function createApp(services: Services, live: Set<Exchange>, onEnd: () => void): App {
  const app = new Hono<Env>({ strict: false })
  const { telemetry } = services
  // What is a valid host is the adapter's to say, as a request without one is answered there.
  const hosts = new Set<string>()
  const passed = ({ incoming }: NodePair): void => {
    if (incoming.headers.host !== undefined && hosts.size < MAX_HOSTS) hosts.add(incoming.headers.host)
  }

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
    request: Request | undefined,
    node: NodePair | undefined,
    name: string,
    handle: Route['handle'],
    params: Readonly<Record<string, string>>,
  ): Promise<Response> => {
    const exchange = new Exchange(request, node, services.stallTimeoutMs, report)
    live.add(exchange)
    if (request !== undefined && node !== undefined) passed(node)
    telemetry?.httpStarted()
    exchange.route = name
    try {
      if (services.security !== undefined) {
        const given = services.security.authenticate(exchange)
        const caller = await partAnswer(exchange, services, given, services.limits.requestTimeoutMs, 'authenticate() of "security"')
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

  const exact = new Map(ROUTES.filter(({ path }) => !path.includes(':')).map((route) => [`${route.method} ${route.path}`, route]))
  return {
    hono: app,
    answers(node) {
      const { incoming, outgoing } = node
      const { method, url, headers } = incoming
      const route = exact.get(`${method} ${url}`)
      if (route === undefined || headers.host === undefined || !hosts.has(headers.host)) return false
      if (method === 'POST') outgoing.once('close', () => discardBody(incoming))
      serve(undefined, node, route.name, route.handle, {}).catch((error: unknown) => {
        services.onError(error, '-')
        outgoing.destroy()
      })
      return true
    },
  }
}
