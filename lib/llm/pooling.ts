/** How a model's rows become embeddings: what its folder says in the layout of sentence-transformers, and what callers say. */
import { TensorRTError } from '../errors'
import { ArgumentReader, invalidArgument } from '../runtime'

/** `last`: the row of the last token; `mean`: the mean of all rows; `cls`: the row of the first token. */
export type Pooling = 'last' | 'mean' | 'cls'

export const POOLINGS = ['last', 'mean', 'cls'] as const satisfies readonly Pooling[]

/** How embeddings are made where a call does not say; in place of what the model folder says. */
export interface EmbeddingOptions {
  /**
   * Default: what the model folder says (`modules.json`, as sentence-transformers writes it), else `last`. `cls` is for models that were
   * trained so: with causal attention the first token sees no other.
   */
  pooling?: Pooling | undefined
  /** Scale each embedding to length 1. Default: whether `modules.json` has a module that does; without the file true. */
  normalize?: boolean | undefined
  /**
   * Which `dimensions` may be asked for, of a model that was trained to be cut (matryoshka): a list, or `any`. Default:
   * `matryoshka_dimensions`, or `is_matryoshka`, of config.json; else none, as cut embeddings of other models are of little use.
   */
  matryoshkaDimensions?: 'any' | readonly number[] | undefined
}

/** As embeddings of a model are made. */
export interface EmbeddingDefaults {
  pooling: Pooling
  normalize: boolean
  /** Empty: none. */
  matryoshkaDimensions: 'any' | readonly number[]
  /** Why they cannot be made as the model folder says; then a pooling must be given. */
  unsupported: string | undefined
}

export const LAST_TOKEN: EmbeddingDefaults = { pooling: 'last', normalize: true, matryoshkaDimensions: [], unsupported: undefined }

const EMBEDDING_OPTIONS = ['pooling', 'normalize', 'matryoshkaDimensions'] as const satisfies readonly (keyof EmbeddingOptions)[]

/** @throws ERR_INVALID_ARGUMENT */
export function checkEmbeddingOptions(options: unknown): EmbeddingOptions {
  if (options === undefined) return {}
  const reader = new ArgumentReader(options, EMBEDDING_OPTIONS, '"embedding"')
  const dimensions = reader.get('matryoshkaDimensions')
  if (dimensions !== undefined && dimensions !== 'any' && !isDimensions(dimensions)) {
    throw invalidArgument('embedding.matryoshkaDimensions', "'any', or an array of integers of at least 1", dimensions)
  }
  return {
    pooling: reader.choice('pooling', POOLINGS) as Pooling | undefined,
    normalize: reader.boolean('normalize'),
    matryoshkaDimensions: dimensions as EmbeddingOptions['matryoshkaDimensions'],
  }
}

export function embeddingDefaults(folder: EmbeddingDefaults, given: EmbeddingOptions): EmbeddingDefaults {
  return {
    pooling: given.pooling ?? folder.pooling,
    normalize: given.normalize ?? folder.normalize,
    matryoshkaDimensions: given.matryoshkaDimensions ?? folder.matryoshkaDimensions,
    unsupported: given.pooling === undefined ? folder.unsupported : undefined,
  }
}

function isDimensions(value: unknown): value is readonly number[] {
  return Array.isArray(value) && value.length > 0 && value.every((size) => Number.isInteger(size) && (size as number) >= 1)
}

/** Flags of `1_Pooling/config.json`, and the newer field `pooling_mode`. Those that are left out here cannot be computed. */
const MODES: readonly (readonly [flag: string, mode: string, pooling: Pooling | undefined])[] = [
  ['pooling_mode_cls_token', 'cls', 'cls'],
  ['pooling_mode_lasttoken', 'lasttoken', 'last'],
  ['pooling_mode_mean_tokens', 'mean', 'mean'],
  ['pooling_mode_max_tokens', 'max', undefined],
  ['pooling_mode_mean_sqrt_len_tokens', 'mean_sqrt_len_tokens', undefined],
  ['pooling_mode_weightedmean_tokens', 'weightedmean', undefined],
]
/** Modules of sentence-transformers by the end of their type: what comes behind the model itself. */
const KNOWN_MODULES = ['Transformer', 'Pooling', 'Normalize']
/** A folder of the model's own folder, such as `1_Pooling`. */
const SUBFOLDER = /^[\w-][\w.-]{0,63}$/

export interface PoolingFiles {
  /** Absolute path of the model's folder, for messages. */
  path: string
  /** Of config.json. */
  config: Readonly<Record<string, unknown>>
  /** Reads JSON below the folder; undefined where there is no such file. */
  read(name: string): Promise<unknown>
}

/** @throws ERR_MODEL_INVALID */
export async function readEmbeddingDefaults({ path, config, read }: PoolingFiles): Promise<EmbeddingDefaults> {
  const matryoshkaDimensions = matryoshkaOf(config, path)
  const modules = await read('modules.json')
  if (modules === undefined) return { ...LAST_TOKEN, matryoshkaDimensions }
  const list = modulesOf(modules, path)
  const normalize = list.some(({ kind }) => kind === 'Normalize')
  const defaults: EmbeddingDefaults = { pooling: 'last', normalize, matryoshkaDimensions, unsupported: undefined }
  const foreign = list.find(({ kind }) => !KNOWN_MODULES.includes(kind))
  if (foreign !== undefined) return { ...defaults, unsupported: `its modules.json has a module of the type ${foreign.kind}` }
  const pooling = list.find(({ kind }) => kind === 'Pooling')
  if (pooling === undefined) return { ...defaults, unsupported: 'its modules.json has no pooling' }
  const name = `${pooling.folder}/config.json`
  const file = await read(name)
  if (typeof file !== 'object' || file === null) throw new TensorRTError('ERR_MODEL_INVALID', `${path}/modules.json names ${name}, which is not there`)
  const fields = file as Record<string, unknown>
  const chosen = MODES.filter(([flag, mode]) => fields[flag] === true || fields['pooling_mode'] === mode)
  const only = chosen[0]
  // Several are joined end to end.
  if (chosen.length !== 1 || only?.[2] === undefined) {
    const modes = chosen.map(([, mode]) => mode).join(' and ')
    return { ...defaults, unsupported: `its pooling is ${modes === '' ? 'unknown' : modes}` }
  }
  if (fields['include_prompt'] === false && only[2] === 'mean') {
    return { ...defaults, unsupported: 'its pooling leaves the tokens of an instruction out, which nothing tells from the rest' }
  }
  return { ...defaults, pooling: only[2] }
}

function matryoshkaOf(config: Readonly<Record<string, unknown>>, path: string): 'any' | readonly number[] {
  const { matryoshka_dimensions: dimensions, is_matryoshka: any } = config
  if (dimensions !== undefined && dimensions !== null) {
    if (isDimensions(dimensions)) return dimensions
    throw new TensorRTError('ERR_MODEL_INVALID', `${path}/config.json: "matryoshka_dimensions" must be an array of integers of at least 1`)
  }
  return any === true ? 'any' : []
}

function modulesOf(modules: unknown, path: string): { kind: string; folder: string }[] {
  const invalid = (): TensorRTError =>
    new TensorRTError('ERR_MODEL_INVALID', `${path}/modules.json must be an array of modules, each with "type" and "path"`)
  if (!Array.isArray(modules)) throw invalid()
  return modules.map((module: unknown) => {
    const { type, path: folder } = (module ?? {}) as { type?: unknown; path?: unknown }
    if (typeof type !== 'string' || typeof folder !== 'string') throw invalid()
    const kind = type.slice(type.lastIndexOf('.') + 1)
    if (kind === 'Pooling' && !SUBFOLDER.test(folder)) throw invalid()
    return { kind, folder }
  })
}
