// The server as a requiring program sees it. Checked by `tsc -p typings`, never run.
import tensorrt = require('node-tensorrt')
import server = require('node-tensorrt/server')

async function serve(): Promise<string> {
  const llm = await tensorrt.LLM.load('model')
  const { url } = await server.createServer(llm).listen({ port: 0 })
  return url
}
void serve
