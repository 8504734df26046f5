// Backends that are collected without a close(), and a process that ends right then.
//   node collected_backend_child.cjs <addon> <options as JSON> <step as JSON> <slot as JSON>
const { setFlagsFromString } = require('node:v8')
const { runInNewContext } = require('node:vm')

const [addonPath, options, step, slot] = process.argv.slice(2)
const holder = { exports: {} }
process.dlopen(holder, addonPath)
setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc')
const turn = () => new Promise((resolve) => setImmediate(resolve))

async function main() {
  const collected = []
  const registry = new FinalizationRegistry((index) => collected.push(index))
  for (let i = 0; i < 8; i++) {
    await (async () => {
      const backend = await holder.exports.createCpuBackend(JSON.parse(options))
      const steps = new Promise((resolve) => backend.start(resolve))
      const { prompt, output, sampling, ...rest } = JSON.parse(slot)
      const init = {
        ...rest,
        prompt: Int32Array.from(prompt),
        output: Int32Array.from(output),
        sampling: { ...sampling, bannedTokens: new Int32Array(0) },
      }
      backend.openSlot(init)
      backend.submit(Int32Array.from(JSON.parse(step)))
      await steps
      registry.register(backend, i)
    })()
  }
  // The threads of the collected ones end in their own time.
  for (const from = performance.now(); collected.length < 8 && performance.now() - from < 60_000; ) {
    collect()
    await turn()
  }
  process.stdout.write(`collected ${collected.length}\n`)
}
main()
