/** docs/metrics.md tells of every metric, as it is. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { HashExecutor } from '../../../../examples/custom-executor/hash_executor'
import { LLM } from '../../../../lib'
import { createSlaAdmission, createTelemetry } from '../../../../lib/server'
import { root } from '../../tensorrt/fixtures'
import { Exposition } from './exposition'

const script = join(root, 'scripts', 'metrics-table.mjs')

it('has the tables of the metrics that there are', async () => {
  const { METRICS_PAGE, withTables } = (await import(script)) as {
    METRICS_PAGE: string
    withTables(page: string, descriptions: unknown): string
  }
  const llm = LLM.fromExecutor(new HashExecutor())
  const admission = createSlaAdmission(llm, { ttftMs: 1000, itlMs: 100 })
  const telemetry = createTelemetry(llm, { model: 'm', accessLog: { path: '/dev/null' }, admission })
  const { families } = new Exposition((await telemetry.metrics()).body)
  const { descriptions } = telemetry
  await telemetry.close()
  await llm.close()
  // What is described is what is shown.
  expect(descriptions.map(({ name, type, help }) => [name, type, help])).toEqual([...families.values()].map(({ name, type, help }) => [name, type, help]))
  const page = readFileSync(METRICS_PAGE, 'utf8')
  expect(page, 'node scripts/build-ts.mjs && node scripts/metrics-table.mjs').toBe(withTables(page, descriptions))
  for (const { name } of descriptions) expect(page.split(`| \`${name}\` |`), name).toHaveLength(2)
  // Queries, alerts and text name none that there is not.
  const named = new Set(page.match(/\b(?:vllm:|node_tensorrt_)[a-z0-9_]+/g))
  for (const name of named) {
    expect(families.has(name) || families.has(name.replace(/_(bucket|sum|count)$/, '')), name).toBe(true)
  }
})
