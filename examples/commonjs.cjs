// The same library from CommonJS.
//   node examples/commonjs.cjs
const { join } = require('node:path')
const { LLM, version } = require('node-tensorrt')

async function main() {
  const llm = await LLM.load(join(__dirname, '..', 'models', 'tiny-storyteller'), { backend: 'cpu' })
  const { text } = await llm.generate({ messages: [{ role: 'user', content: 'What is 7 plus 5?' }], temperature: 0 }).result()
  console.log(`node-tensorrt ${version} on ${llm.info.device}: ${text}`)
  await llm.close()
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
