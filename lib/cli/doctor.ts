import { existsSync, readdirSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { Command, Option } from 'commander'
import { loadAddon, type TensorRTProbe } from '../native'
import { inspectModel } from '../llm'
import { version } from '../version'
import { isEngineFolder, readEngineManifest } from '../runtime'
import { type Check, failed } from './check'
import { checkOnnx, checkOnnxEngine, checkPlan } from './doctor_onnx'
import { checkEngine, checkTensorRT } from './doctor_tensorrt'
import { parseInteger, resolveModel } from './options'
import { formatBytes } from './output'

export function doctorCommand(): Command {
  return new Command('doctor')
    .description('Check that this machine can run the library, on CPU and GPU, and a folder if one is given.')
    .argument('[model]', 'a model folder, engine folder, .onnx file or plan to check')
    .option('--device <n>', 'GPU to check an engine folder for', parseInteger(0, 1023), 0)
    .addOption(
      new Option('--library-path <path>', 'libnvinfer, or the folder that has it').default('', "TENSORRT_LIB_DIR, then the system's search path"),
    )
    .option('--try', 'load the engine of an ONNX model, or a plan, in a process of its own')
    .option('--json', 'the report as JSON on stdout')
    .addHelpText('after', '\nExit code 0 when everything that is needed works, 1 otherwise. Nodes that TensorRT does not support are a failure.')
    .action(doctor)
}

interface DoctorOptions {
  device: number
  libraryPath: string
  try?: boolean
  json?: boolean
}

async function doctor(named: string | undefined, options: DoctorOptions, command: Command): Promise<void> {
  if (named === '') command.error("error: argument 'model' is empty")
  const model = named === undefined ? undefined : resolveModel(named)
  const checks: Check[] = [checkNode(), checkPlatform(), ...checkAddon()]
  const gpu = await checkTensorRT(options)
  checks.push(...gpu.checks)
  if (model !== undefined) checks.push(...(await checkNamed(model, gpu.facts, options)))
  const healthy = checks.every((check) => check.ok || check.optional === true)
  process.exitCode = healthy ? 0 : 1
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify({ version, healthy, checks }, null, 2)}\n`)
    return
  }
  process.stdout.write(`node-tensorrt ${version}\n`)
  for (const { name, ok, optional, detail, code, hint, places = [] } of checks) {
    const reason = code === undefined ? '' : ` [${code}]`
    process.stdout.write(`${ok ? '  ok  ' : optional === true ? '  --  ' : ' FAIL '} ${name}: ${detail}${reason}\n`)
    for (const place of places) process.stdout.write(`       looked at ${place}\n`)
    if (!ok && hint !== undefined) process.stdout.write(`       ${hint}\n`)
  }
  process.stdout.write(healthy ? 'Everything that is needed works.\n' : 'Something that is needed does not work.\n')
}

async function checkNamed(path: string, facts: TensorRTProbe | undefined, options: DoctorOptions): Promise<Check[]> {
  if (path.endsWith('.onnx')) return checkOnnx(path, options)
  if (statSync(path, { throwIfNoEntry: false })?.isFile() === true) return checkPlan(path, options)
  if (await isOnnxEngine(path)) return checkOnnxEngine(path, facts, options)
  return [await checkModel(path), ...(await checkEngine(path, facts, options.device))]
}

async function isOnnxEngine(folder: string): Promise<boolean> {
  if (!(await isEngineFolder(folder))) return false
  // A manifest that cannot be read is reported by the check of the folder.
  return readEngineManifest(folder).then(
    ({ kind }) => kind === 'onnx',
    () => !existsSync(join(folder, 'graph.json')),
  )
}

function checkNode(): Check {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const ok = major > 20 || (major === 20 && minor >= 19)
  return { name: 'Node', ok, detail: `${process.version}, Node-API ${process.versions.napi}`, hint: 'Node 20.19 or later is needed.' }
}

function checkPlatform(): Check {
  const header = (process.report.getReport() as { header?: { glibcVersionRuntime?: string } }).header
  const libc = header?.glibcVersionRuntime
  const linux = process.platform === 'linux'
  return {
    name: 'Platform',
    ok: linux && libc !== undefined,
    detail: `${process.platform}-${process.arch}${libc === undefined ? '' : `, glibc ${libc}`}`,
    hint: linux ? 'The prebuilt binary needs glibc 2.28 or later; on musl, build from source.' : 'Linux on x64 is supported.',
  }
}

function checkAddon(): Check[] {
  try {
    const { addon, path } = loadAddon()
    const cpu = addon.cpuFeatures()
    return [
      { name: 'Addon', ok: true, detail: `${addon.version} (${addon.buildType}) from ${path}` },
      { name: 'CPU backend', ok: true, detail: `${cpu.model}, ${cpu.simd.join(' > ')}, ${cpu.threads} threads` },
    ]
  } catch (error) {
    return [failed('Addon', error)]
  }
}

async function checkModel(folder: string): Promise<Check> {
  try {
    const facts = await inspectModel(folder)
    return {
      name: `Model ${folder}`,
      ok: true,
      detail:
        `${facts.family}, ${facts.layers} layers, vocabulary ${facts.vocabSize}, context ${facts.maxPositions}, ` +
        `weights ${formatBytes(facts.weightBytes)} in ${facts.files} file${facts.files === 1 ? '' : 's'}`,
    }
  } catch (error) {
    const where = resolve(folder)
    const check = failed(`Model ${folder}`, error)
    if (existsSync(where)) check.detail += `; the folder holds ${readdirSync(where).slice(0, 12).join(', ') || 'nothing'}`
    return check
  }
}
