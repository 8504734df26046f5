/** What of XGrammar's WebAssembly module is used: the C++ library's own classes, as Emscripten's bindings present them. */
import { createRequire } from 'node:module'
import { join } from 'node:path'

/** An object of C++'s. Nothing but `delete` frees it. */
interface Handle {
  delete(): void
}

export interface IntVector extends Handle {
  readonly __int: never
}

export interface ParsedGrammar extends Handle {
  /** Its normal form, as EBNF. */
  ToString(): string
}

export interface CompiledGrammar extends Handle {
  readonly __compiled: never
}

export interface TokenizerInfo extends Handle {
  readonly __info: never
}

export interface GrammarCompiler extends Handle {
  CompileGrammar(grammar: ParsedGrammar): CompiledGrammar
}

export interface GrammarMatcher extends Handle {
  AcceptToken(token: number, verbose: boolean): boolean
  /** `ceil(vocabSize / 32)` words, bit set = allowed. */
  GetNextTokenBitmask(vocabSize: number): IntVector
}

export interface XGrammar {
  /** The module's memory; another array after it has grown. */
  readonly HEAP8: Int8Array
  vecStringFromJSArray(strings: readonly (string | Uint8Array)[]): Handle
  vecIntFromJSArray(values: readonly number[]): Handle
  /** Of the module's own memory: valid until its next call. */
  vecIntToView(vector: IntVector): Int32Array
  Grammar: {
    FromEBNF(text: string, rootRule: string): ParsedGrammar
    FromStructuralTag(json: string): ParsedGrammar
  }
  TokenizerInfo: new (
    vocabulary: Handle,
    kind: 'RAW',
    vocabSize: number,
    stopTokens: Handle,
    prependSpace: boolean,
  ) => TokenizerInfo
  GrammarCompiler: new (tokenizer: TokenizerInfo, threads: number, cache: boolean) => GrammarCompiler
  GrammarMatcher: new (
    grammar: CompiledGrammar,
    stopTokens: undefined,
    endWithoutStopToken: boolean,
    maxRollback: number,
  ) => GrammarMatcher
}

interface Vendored {
  createBinding(options: { print: (line: string) => void; printErr: (line: string) => void }): Promise<XGrammar>
}

/** @param onMessage gets lines that the library writes, its errors among them: it ends without an exception */
export function loadXGrammar(onMessage: (line: string) => void): Promise<XGrammar> {
  // At the same distance from lib/grammar and dist/grammar.
  const file = join(__dirname, '..', '..', 'vendor', 'web-xgrammar', 'index.cjs')
  const vendored = createRequire(__filename)(file) as Vendored
  return vendored.createBinding({ print: onMessage, printErr: onMessage })
}
