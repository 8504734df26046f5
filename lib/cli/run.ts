import { Command } from 'commander'
import { TensorRTError } from '../errors'
import type { GenerateOptions } from '../llm'
import { Interrupt, reportFailure, writeOut } from './output'
import { addModelOptions, addSamplingOptions, loadModel, type ModelOptions, samplingOf, type SamplingOptions } from './options'

const DEFAULT_PROMPT = 'Write a short story about a brave fox who finds a silver key.'

interface RunOptions extends ModelOptions, SamplingOptions {
  system?: string
  raw?: boolean
  quiet?: boolean
}

export function runCommand(): Command {
  const command = new Command('run')
    .description('Generate once and stream the text to stdout; figures go to stderr.')
    .argument('[prompt...]', `the prompt; '-' reads it from stdin (default: "${DEFAULT_PROMPT}")`)
    .option('--system <text>', 'system message')
    .option('--raw', 'complete the prompt as it is, without the chat template')
    .option('-q, --quiet', 'no figures on stderr')
    .option('--json', 'one JSON object on stdout instead of streaming text')
  return addSamplingOptions(addModelOptions(command)).action(run)
}

async function run(words: string[], options: RunOptions): Promise<void> {
  const interrupt = new Interrupt()
  const json = options.json === true
  try {
    const fromStdin = words.length === 1 && words[0] === '-'
    const given = words.length === 0 ? DEFAULT_PROMPT : words.join(' ')
    const prompt = fromStdin ? await readStdin(interrupt.signal) : given
    const llm = await loadModel(options, interrupt.signal)
    try {
      const input: GenerateOptions =
        options.raw === true || !llm.info.hasChatTemplate
          ? rawPrompt(prompt, options)
          : {
              messages: [
                ...(options.system === undefined ? [] : [{ role: 'system', content: options.system }]),
                // The line break at the end of piped text is the pipe's, not the writer's.
                { role: 'user', content: prompt.replace(/\r?\n$/, '') },
              ],
            }
      const generation = llm.generate({ ...input, ...samplingOf(options), signal: interrupt.signal })
      if (!json) {
        for await (const chunk of generation) await writeOut(chunk.text, interrupt.signal)
        await writeOut('\n', interrupt.signal)
      }
      const result = await generation.result()
      const { ttftMs, totalMs } = result.timings
      const decodeMs = totalMs - ttftMs
      const decodeRate = decodeMs > 0 ? ((result.usage.completionTokens - 1) / decodeMs) * 1000 : 0
      if (json) {
        const { text, finishReason, usage, timings } = result
        process.stdout.write(`${JSON.stringify({ text, finishReason, usage, timings, backend: llm.backend, device: llm.info.device })}\n`)
      } else if (options.quiet !== true) {
        const { promptTokens, completionTokens } = result.usage
        process.stderr.write(
          `\n[${llm.backend}: ${llm.info.device}] ${promptTokens} prompt + ${completionTokens} generated tokens, ` +
            `first after ${ttftMs.toFixed(1)} ms, then ${Math.round(decodeRate)} tokens/s (${result.finishReason})\n`,
        )
      }
    } finally {
      await llm.close()
    }
  } catch (error) {
    if (interrupt.signal.aborted) {
      if (!json) process.stderr.write('\n')
      process.exitCode = interrupt.exitCode
    } else {
      reportFailure(error, json)
    }
  } finally {
    interrupt.dispose()
  }
}

function rawPrompt(prompt: string, options: RunOptions): GenerateOptions {
  if (options.system !== undefined) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', '--system needs a chat template', {
      hint: options.raw === true ? 'leave out --raw' : 'this model has no chat template',
    })
  }
  return { prompt }
}

async function readStdin(signal: AbortSignal): Promise<string> {
  process.stdin.setEncoding('utf8')
  const stop = (): void => void process.stdin.destroy()
  signal.addEventListener('abort', stop)
  try {
    let text = ''
    for await (const piece of process.stdin) text += piece
    return text
  } finally {
    signal.removeEventListener('abort', stop)
  }
}
