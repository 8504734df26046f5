// The server as an importing program sees it. Checked by `tsc -p typings`, never run.
import { expectTypeOf } from 'expect-type'
import { LLM } from 'node-tensorrt'
import { createServer, DEFAULT_LIMITS, type RequestLimits, type Security, type Server, type Telemetry } from 'node-tensorrt/server'

declare const telemetry: Telemetry
const security: Security = {
  authenticate: (request) =>
    request.header('authorization') === 'Bearer abc'
      ? { keyName: 'abc', cacheSalt: 'salt', limits: { maxChoices: 1 } }
      : { refusal: { status: 401, code: 'invalid_api_key', message: 'No' } },
}

// The class of one entry is the class of the other.
const llm = await LLM.load('model')
const server = createServer(llm, { modelName: ['a', 'b'], telemetry, security, limits: { maxBodyBytes: 1024 } })
expectTypeOf(server).toEqualTypeOf<Server>()
expectTypeOf(await server.listen({ port: 0, host: '::1' })).toEqualTypeOf<{ host: string; port: number; url: string }>()
expectTypeOf(server.fetch(new Request('http://localhost/health'))).toEqualTypeOf<Promise<Response>>()
expectTypeOf(DEFAULT_LIMITS).toEqualTypeOf<Readonly<RequestLimits>>()
await server.close({ drainMs: 1000, signal: AbortSignal.timeout(10) })
await server[Symbol.asyncDispose]()

// @ts-expect-error there is no such option
createServer(llm, { models: [] })
// @ts-expect-error the model is an LLM
createServer('model')
