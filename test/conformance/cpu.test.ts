import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { graphFromConfig } from '../../lib/models'
import { CpuBackend } from '../../lib/native/backend'
import { describeExecutor } from './executor_suite'

const folder = join(__dirname, '../../models/tiny-storyteller')
const config: unknown = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))

const backend = (pageSize: number, simd: string): Promise<CpuBackend> =>
  CpuBackend.create({
    graph: graphFromConfig(config),
    files: [join(folder, 'model.safetensors')],
    pageSize,
    numPages: 64,
    maxSlots: 4,
    maxStepTokens: 64,
    threads: 2,
    simd,
  })

describeExecutor('CPU, pages of 16', () => backend(16, ''))
describeExecutor('CPU, pages of 1', () => backend(1, ''))
describeExecutor('CPU, portable kernels', () => backend(4, 'portable'))
