/** Asks the grammar library itself whether a grammar takes a text, byte by byte. */
import { checkGrammar } from '../../lib/grammar/specification'
import { type GrammarCompiler, loadXGrammar, type ParsedGrammar, type XGrammar } from '../../lib/grammar/xgrammar'

const BYTES = 256

export class Acceptance {
  private constructor(
    private readonly library: XGrammar,
    private readonly compiler: GrammarCompiler,
  ) {}

  static async load(): Promise<Acceptance> {
    const library = await loadXGrammar(() => {})
    const bytes = Array.from({ length: BYTES + 1 }, (_, byte) => (byte < BYTES ? Uint8Array.of(byte) : new Uint8Array(0)))
    const info = new library.TokenizerInfo(library.vecStringFromJSArray(bytes), 'RAW', BYTES + 1, library.vecIntFromJSArray([BYTES]), false)
    return new Acceptance(library, new library.GrammarCompiler(info, 1, false))
  }

  /** @returns for each text whether the grammar takes it as a whole */
  of(ebnf: string, texts: readonly string[]): boolean[] {
    return this.try(ebnf, texts).map(({ complete }) => complete)
  }

  /** Whether the grammar takes a text as the beginning of another. A character that is cut off at its end counts as none. */
  ofPrefix(ebnf: string, text: string): boolean {
    return this.try(ebnf, [text.replace(/\uFFFD$/, '')])[0]!.begun
  }

  /** The same of a grammar as callers have it. */
  ofGrammar(grammar: unknown, texts: readonly string[]): boolean[] {
    const { kind, text } = checkGrammar(grammar)
    const { FromEBNF, FromStructuralTag } = this.library.Grammar
    return this.run(kind === 'ebnf' ? FromEBNF(text, 'root') : FromStructuralTag(text), texts).map(({ complete }) => complete)
  }

  private try(ebnf: string, texts: readonly string[]): { begun: boolean; complete: boolean }[] {
    return this.run(this.library.Grammar.FromEBNF(ebnf, 'root'), texts)
  }

  private run(parsed: ParsedGrammar, texts: readonly string[]): { begun: boolean; complete: boolean }[] {
    const { library } = this
    const compiled = this.compiler.CompileGrammar(parsed)
    const taken = texts.map((text) => {
      const matcher = new library.GrammarMatcher(compiled, undefined, false, -1)
      const begun = Buffer.from(text).every((byte) => matcher.AcceptToken(byte, false))
      const vector = matcher.GetNextTokenBitmask(BYTES + 1)
      const complete = begun && (library.vecIntToView(vector)[BYTES >> 5]! & 1) === 1
      vector.delete()
      matcher.delete()
      return { begun, complete }
    })
    compiled.delete()
    parsed.delete()
    return taken
  }
}
