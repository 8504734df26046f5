/**
 * Random JSON schemas on the CPU backend with the model of the repository, at temperature 1: how many outputs are complete, and
 * whether each complete one parses and is valid.
 *
 *   npx tsx bench/structured_output.ts [schemas] [seed]
 */
import { cpus } from 'node:os'
import { resolve } from 'node:path'
import { LLM } from '../lib'
import { runSchemas } from '../test/support/structured_outputs'

async function main(): Promise<void> {
  const schemas = Number(process.argv[2] ?? 1000)
  const seed = Number(process.argv[3] ?? 1)
  const llm = await LLM.load(resolve(__dirname, '..', 'models', 'tiny-storyteller'), { backend: 'cpu', maxSequences: 32, grammarTimeoutMs: 60_000 })
  process.stdout.write(`${new Date().toISOString()}, ${llm.info.device}, ${cpus().length} processors, Node ${process.version}\n`)
  let failed = false
  for (const whitespace of [undefined, 0]) {
    const run = await runSchemas(llm, { schemas, seed, concurrency: 32, maxTokens: 960, ...(whitespace === undefined ? {} : { whitespace }) })
    llm.check()
    const { usedPages } = llm.stats().kv
    process.stdout.write(
      `white space ${whitespace ?? 'as by default'}: ${run.schemas} schemas, ${run.complete} complete and valid ` +
        `(${((100 * run.complete) / run.schemas).toFixed(1)}%), ${run.cut} cut by maxTokens, ${run.faults.length} wrong; ` +
        `${run.tokens} tokens in ${run.seconds.toFixed(1)} s; ${usedPages} pages in use afterwards\n`,
    )
    for (const fault of run.faults) process.stdout.write(`  ${fault}\n`)
    failed ||= run.faults.length > 0 || run.complete < 0.95 * run.schemas
  }
  await llm.close()
  process.exitCode = failed ? 1 : 0
}

void main()
