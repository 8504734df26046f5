// Writes the generated pages of docs/: api.md and server-api.md from the public declarations, cli.md from the help texts.
//   node scripts/docs.mjs [--check]      --check: changes nothing, fails where a page is out of date
// Reads typings/ and dist/, so build first.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const root = resolve(fileURLToPath(import.meta.url), '..', '..')
const main = join(root, 'dist', 'cli', 'main.js')

/** Every export of the package, in the order of the page. */
const SECTIONS = [
  ['Language models', ['LLM', 'LLMInfo', 'LLMWarning', 'LLMHealth', 'LLMState']],
  ['Options of `LLM.load()`', ['LLMOptions', 'EngineOptions', 'BackendChoice', 'FromExecutorOptions', 'RestartOptions', 'CloseOptions']],
  [
    'Options of `generate()`',
    ['GenerateOptions', 'Grammar', 'PromptOptions', 'EncodedPrompt', 'SamplingOptions', 'StopOptions', 'ReportOptions', 'ScheduleOptions', 'LogitBias', 'TokenConstraint', 'ChatInputOptions', 'ChatMessage', 'TextPart'],
  ],
  [
    'Generations',
    ['Generation', 'GenerationChunk', 'GenerationResult', 'GenerationChoice', 'FinishReason', 'TokenLogprob', 'Usage', 'GenerationTimings', 'GenerationDefaults'],
  ],
  ['Embeddings', ['EmbedOptions', 'EmbeddingOptions', 'EmbeddingDefaults', 'Pooling', 'EmbedInput', 'EmbeddingResult']],
  ['Statistics', ['LLMStats', 'LLMLoad', 'LLMProfile', 'ProfileOptions', 'StepProfile', 'LayerProfile', 'PartTimes', 'LayerTimes', 'StepObserver', 'Quantiles']],
  [
    'Language models for a GPU',
    ['buildLLMEngine', 'BuildEngineOptions', 'BuildProgress', 'BuiltEngine', 'EngineManifest', 'EngineKind', 'LLMEngineManifest', 'RowProfile', 'WeightFile'],
  ],
  [
    'Verifying engines of language models',
    ['verifyEngine', 'VerifyOptions', 'VerificationLimits', 'VerifyProgress', 'VerificationReport', 'EngineVerification', 'WorstPosition', 'saveReferences', 'SaveReferencesOptions'],
  ],
  ['Sessions', ['Session', 'SessionLoadOptions', 'SessionOptions', 'BatchingOptions', 'RaggedDimension', 'RunOptions', 'TensorMap', 'OutputMap', 'SessionCloseOptions', 'SessionWarning', 'SessionInfo', 'TensorSignature', 'SessionStats', 'DurationStats', 'LaneStats']],
  ['Tensors', ['Tensor', 'AnyTensor', 'DataType', 'DATA_TYPES', 'TensorData', 'TensorDataTypes', 'TensorSource', 'Float16ArrayLike']],
  [
    'Engines from ONNX models',
    [
      'buildEngine',
      'OnnxBuildOptions',
      'InputProfile',
      'InputRange',
      'LayerRule',
      'OnnxBuildProgress',
      'BuiltOnnxEngine',
      'OnnxEngineManifest',
      'OnnxBuildFlags',
      'OnnxReference',
      'inspectOnnxModel',
      'OnnxSupportOptions',
      'OnnxSupport',
      'OnnxProblem',
      'readOnnxModel',
      'OnnxModelInfo',
      'OnnxTensorInfo',
      'OnnxNode',
      'OnnxExternalFile',
    ],
  ],
  [
    'Engines',
    [
      'Engine',
      'EngineLoadOptions',
      'EngineInfo',
      'TensorInfo',
      'ShapeRange',
      'ProfileInfo',
      'EngineLayers',
      'tryEngine',
      'TryEngineOptions',
      'TryEngineResult',
      'ExecutionContext',
      'ContextOptions',
      'SetTensorOptions',
      'OutputView',
      'LayerTime',
    ],
  ],
  [
    'Devices, memory and streams',
    [
      'gpus',
      'GpuInfo',
      'Runtime',
      'RuntimeOptions',
      'RuntimeInfo',
      'MemoryFigures',
      'DeviceCounters',
      'NativeHandle',
      'WaitOptions',
      'MemoryBuffer',
      'DeviceBuffer',
      'PinnedBuffer',
      'BufferSize',
      'BufferLayout',
      'AllocateOptions',
      'Stream',
      'StreamOptions',
      'CopyOptions',
      'CopyRowsOptions',
      'FillOptions',
      'StreamCounters',
      'Event',
      'EventOptions',
      'CudaGraph',
      'setLogger',
      'LoggerOptions',
      'LogLine',
      'LogSeverity',
    ],
  ],
  ['Paged KV cache', ['KvCache', 'KvCacheOptions', 'KvGeometry', 'KvDataType', 'KvSequence', 'KvPageTables', 'KvPageOptions', 'KvCacheStats']],
  ['Model folders', ['inspectModel', 'ModelFacts']],
  ['Text', ['Tokenizer', 'ChatTemplate', 'ToolCallFormatName', 'ReasoningFormatName']],
  [
    'Executors',
    [
      'Executor',
      'ExecutorInfo',
      'SlotInit',
      'SlotSampling',
      'StepResult',
      'LogprobRow',
      'StepTimings',
      'StepChecker',
      'StepView',
      'StepSequenceView',
      'StepFlag',
      'StepMode',
      'maskWords',
      'maskAllows',
      'NOTHING_ALLOWED',
      'LAST_SAMPLED_TOKEN',
      'STEP_VERSION',
      'STEP_HEADER_INTS',
      'STEP_SEQUENCE_INTS',
    ],
  ],
  ['Errors', ['TensorRTError', 'TensorRTErrorOptions', 'AbortError', 'ErrorCode', 'ERROR_CODES']],
  ['Version', ['version']],
]

/** Likewise of 'node-tensorrt/server'. */
const SERVER_SECTIONS = [
  ['The server', ['createServer', 'Server', 'ServerOptions', 'ListenOptions', 'ServerCloseOptions', 'RequestLimits', 'DEFAULT_LIMITS']],
  ['API keys', ['createKeySecurity', 'KeySecurityOptions', 'ApiKey', 'makeApiKey', 'hashApiKey', 'OPEN_ROUTES']],
  ['Service levels', ['createSlaAdmission', 'SlaAdmission', 'SlaOptions', 'SlaSnapshot']],
  ['Telemetry', ['createTelemetry', 'ServerTelemetry', 'TelemetryOptions', 'AccessLogDestination', 'MetricDescription', 'MetricType']],
  [
    'Parts of your own',
    [
      'Security',
      'Caller',
      'Refusal',
      'RequestHead',
      'Admission',
      'AdmissionDecision',
      'AdmissionTicket',
      'RefusalReason',
      'Telemetry',
      'RequestTelemetry',
      'RequestFacts', 'TokenizeFacts',
      'RequestOutcome',
      'HttpFacts',
      'Endpoint',
      'HealthProbe',
    ],
  ],
]

const SERVER_INTRODUCTION = `# API of the server

Everything that \`import ... from 'node-tensorrt/server'\` and \`require('node-tensorrt/server')\` give. The routes, and how to run them, are in [server.md](server.md);
the library itself is in [api.md](api.md).
`

const INTRODUCTION = `# API

Everything that \`import ... from 'node-tensorrt'\` and \`require('node-tensorrt')\` give, made from the declarations that travel in the
package. An option that is \`undefined\` counts as left out; one that does not exist, or whose value is not allowed, is
\`ERR_INVALID_ARGUMENT\`, with the name in the message. Times are in milliseconds and sizes in bytes unless a text says otherwise. What a call throws
stands with it; the codes are explained in [errors.md](errors.md).
`

/** Text of a comment, on one line, with the links as code. */
function prose(parts) {
  const text = typeof parts === 'string' ? parts : ts.displayPartsToString(parts)
  return text
    .replace(/\{@link ([^}]+)\}/g, (_, name) => `\`${name.trim()}\``)
    .replace(/\s*\n\s*/g, ' ')
    .trim()
}
const cell = (text) => text.replaceAll('|', '\\|')

/** Lines of a comment, as its author broke them into paragraphs and lists. */
function paragraphs(parts) {
  return ts
    .displayPartsToString(parts)
    .split(/\n\s*\n/)
    .map(prose)
    .join('\n\n')
}

class Page {
  constructor(checker) {
    this.checker = checker
    this.lines = []
  }

  write(...lines) {
    this.lines.push(...lines)
  }

  symbol(name, symbol) {
    const declarations = symbol.getDeclarations() ?? []
    const [declaration] = declarations
    this.write(`### \`${name}\``, '')
    const about = paragraphs(symbol.getDocumentationComment(this.checker))
    if (about !== '' && !ts.isFunctionDeclaration(declaration)) this.write(about, '')
    if (ts.isClassDeclaration(declaration)) this.members(declaration, 'class')
    else if (ts.isInterfaceDeclaration(declaration)) this.members(declaration, 'interface')
    else if (ts.isFunctionDeclaration(declaration)) this.call(symbol, declaration)
    else this.code(declaration)
  }

  code(declaration) {
    const text = ts.isVariableDeclaration(declaration) ? declaration.parent.parent.getText() : declaration.getText()
    const bare = text.replace(/^(export )?(declare )?/, '').replace(/\/\*\*[\s\S]*?\*\/\s*/g, '')
    // A bundler's own name in it says nothing to a reader.
    const resolved = bare.includes('$') ? `type ${declaration.name.getText()} = ${this.checker.typeToString(this.checker.getTypeAtLocation(declaration), undefined, ts.TypeFormatFlags.InTypeAlias)}` : bare
    if (resolved.length < 400) this.write('```typescript', resolved, '```', '')
  }

  members(declaration, kind) {
    const inherited = (declaration.heritageClauses ?? []).filter(({ token }) => token === ts.SyntaxKind.ExtendsKeyword).flatMap(({ types }) => types.map((type) => `\`${type.getText()}\``))
    if (inherited.length > 0) this.write(`Has the members of ${inherited.join(', ')}, too.`, '')
    const open = declaration.members.filter((member) => {
      const flags = ts.getCombinedModifierFlags(member)
      return (flags & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) === 0 && !(member.name !== undefined && ts.isPrivateIdentifier(member.name))
    })
    const calls = open.filter((member) => ts.isMethodDeclaration(member) || ts.isMethodSignature(member) || ts.isConstructorDeclaration(member))
    const rows = open.filter((member) => !calls.includes(member)).flatMap((member) => this.rows(member))
    if (rows.length > 0) this.write(kind === 'class' ? '| property | type | |' : '| name | type | |', '| --- | --- | --- |', ...rows, '')
    for (const call of calls) {
      const symbol = ts.isConstructorDeclaration(call) ? undefined : this.checker.getSymbolAtLocation(call.name)
      this.call(symbol, call)
    }
  }

  /** Of an object type inside an interface, each member has a row of its own. */
  rows(member, prefix = '') {
    if (member.name === undefined) {
      const parameter = member.parameters?.[0]?.getText() ?? ''
      return [`| \`${prefix}[${cell(parameter)}]\` | \`${cell(member.type.getText())}\` | any other field |`]
    }
    const name = member.name.getText()
    const symbol = this.checker.getSymbolAtLocation(member.name)
    const optional = member.questionToken !== undefined
    const about = prose(symbol.getDocumentationComment(this.checker))
    const { type } = member
    if (type !== undefined && ts.isTypeLiteralNode(type) && type.members.length > 0) {
      const head = about === '' ? [] : [`| \`${prefix}${name}\` | | ${cell(about)} |`]
      return [...head, ...type.members.flatMap((inner) => this.rows(inner, `${prefix}${name}.`))]
    }
    const text = (type?.getText() ?? this.checker.typeToString(this.checker.getTypeAtLocation(member))).replace(/\s+/g, ' ')
    const shown = optional ? text.replace(/ \| undefined$/, '') : text
    return [`| \`${prefix}${name}${optional ? '?' : ''}\` | \`${cell(shown)}\` | ${cell(about)} |`]
  }

  call(symbol, declaration) {
    const signature = declaration.getText().replace(/\s+/g, ' ').replace(/^(export )?(declare )?/, '').replace(/^function /, '').replace(/;$/, '')
    this.write('```typescript', signature.replace(/ \| undefined(?=[;,)])/g, ''), '```', '')
    // A comment stands with the declaration; a symbol's would be joined of all overloads.
    const comments = ts.getJSDocCommentsAndTags(declaration).filter(ts.isJSDoc)
    const about = comments.map((comment) => ts.getTextOfJSDocComment(comment.comment) ?? '').join('\n\n')
    if (about !== '') this.write(about.split(/\n\s*\n/).map(prose).join('\n\n'), '')
    for (const tag of ts.getJSDocTags(declaration)) {
      const text = prose(ts.getTextOfJSDocComment(tag.comment) ?? '')
      const kind = tag.tagName.text
      if (kind === 'param') this.write(`- \`${tag.name.getText()}\`: ${text.replace(/^- /, '')}`)
      else if (kind === 'throws') this.write(`- Throws ${text}`)
      else if (kind === 'returns') this.write(`- Returns ${text}`)
    }
    if (this.lines.at(-1) !== '') this.write('')
  }
}

function apiPage(file, introduction, sections) {
  const entry = join(root, 'typings', file)
  if (!existsSync(entry)) throw new Error(`${entry} is missing: run npm run build:typings`)
  const program = ts.createProgram([entry], { module: ts.ModuleKind.Node16, moduleResolution: ts.ModuleResolutionKind.Node16, types: ['node'], skipLibCheck: true })
  const checker = program.getTypeChecker()
  const exported = new Map(
    checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(entry))).map((symbol) => {
      const target = (symbol.flags & ts.SymbolFlags.Alias) === 0 ? symbol : checker.getAliasedSymbol(symbol)
      return [symbol.name, target]
    }),
  )
  const page = new Page(checker)
  page.write(introduction)
  for (const [title] of sections) page.write(`- [${title.replaceAll('`', '')}](#${anchor(title)})`)
  page.write('')
  for (const [title, names] of sections) {
    page.write(`## ${title}`, '')
    for (const name of names) {
      const symbol = exported.get(name)
      if (symbol === undefined) throw new Error(`scripts/docs.mjs lists ${name}, which is no export of ${file}`)
      exported.delete(name)
      page.symbol(name, symbol)
    }
  }
  if (exported.size > 0) throw new Error(`exports of ${file} without a place in scripts/docs.mjs: ${[...exported.keys()].join(', ')}`)
  return `${page.lines.join('\n').trimEnd()}\n`
}

/** As GitHub makes them. */
function anchor(title) {
  return title.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-')
}

function help(command) {
  const { stdout, status, stderr } = spawnSync(process.execPath, [main, ...command, '--help'], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`node-tensorrt ${command.join(' ')} --help failed: ${stderr}`)
  return stdout.trimEnd()
}

function cliPage() {
  const overview = help([])
  const commandsOf = (text) => [...text.matchAll(/^ {2}(\w+) (?:\[options\]|<)/gm)].map(([, name]) => name)
  const commands = commandsOf(overview).flatMap((name) => [[name], ...commandsOf(help([name])).map((inner) => [name, inner])])
  const parts = commands.map((names) => `## ${names.join(' ')}\n\n\`\`\`\n${help(names)}\n\`\`\`\n`)
  return `# Command line

\`npx node-tensorrt\`, or \`node dist/cli/main.js\` in a checkout. Text goes to stdout; progress, figures and warnings go to stderr, so that
a pipe gets the text alone. With \`--json\`, stdout holds JSON, also for a failure or a wrong option: \`{"error": {"code", "message", "hint"}}\`, with the codes
of [errors.md](errors.md). Ctrl-C stops the work; what was written stays. \`NODE_TENSORRT_DEBUG=1\` adds the stack to an unexpected error.

\`\`\`
${overview}
\`\`\`

${parts.join('\n')}`
}

export const pages = {
  'api.md': () => apiPage('index.d.ts', INTRODUCTION, SECTIONS),
  'server-api.md': () => apiPage('server.d.ts', SERVER_INTRODUCTION, SERVER_SECTIONS),
  'cli.md': cliPage,
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  for (const [name, make] of Object.entries(pages)) {
    const path = join(root, 'docs', name)
    const text = make()
    if (!process.argv.includes('--check')) {
      writeFileSync(path, text)
    } else if (!existsSync(path) || readFileSync(path, 'utf8') !== text) {
      console.error(`docs/${name} is out of date: run npm run docs`)
      process.exitCode = 1
    }
  }
}
