/** Programs that the pages show. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { root } from './programs'

export interface Block {
  name: string
  code: string
  extension: 'mts' | 'mjs' | 'cjs'
  /** Why it is not run as it stands. */
  notRun: string | undefined
}

/** The fenced blocks of TypeScript and JavaScript. `<!-- not run: reason -->` above one keeps it from being run as it stands. */
export function blocksOf(file: string): Block[] {
  const text = readFileSync(join(root, file), 'utf8')
  const fence = /(?:<!-- not run: ([^\n]+?) -->\n)?^```(ts|js)\n([\s\S]*?)^```$/gm
  return [...text.matchAll(fence)].map(([, notRun, language, code], index) => ({
    name: `${file.replaceAll('/', '-')}-${index}`,
    code: code!,
    extension: language === 'ts' ? 'mts' : code!.includes('require(') ? 'cjs' : 'mjs',
    notRun,
  }))
}

/** Node 20 takes no types: they are stripped, and nothing else is changed. */
export function stripTypes(code: string): string {
  return ts.transpileModule(code, {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022, verbatimModuleSyntax: true },
  }).outputText
}
