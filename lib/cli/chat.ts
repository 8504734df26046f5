import { createInterface } from 'node:readline'
import { Command } from 'commander'
import { AbortError, TensorRTError } from '../errors'
import type { ChatMessage } from '../text'
import { failureJson, Interrupt, reportFailure, writeOut } from './output'
import { addModelOptions, addSamplingOptions, loadModel, type ModelOptions, samplingOf, type SamplingOptions } from './options'

interface ChatOptions extends ModelOptions, SamplingOptions {
  system?: string
}

const HELP = '/reset starts over, /undo takes the last exchange back, /exit or Ctrl-D leaves, Ctrl-C stops an answer'

export function chatCommand(): Command {
  const command = new Command('chat')
    .description('Talk to the model. Reads lines from the terminal, or from stdin when that is no terminal.')
    .option('--system <text>', 'system message')
    .option('--json', 'one JSON line per answer on stdout')
    .addHelpText('after', `\nInside: ${HELP}.`)
  return addSamplingOptions(addModelOptions(command)).action(chat)
}

async function chat(options: ChatOptions): Promise<void> {
  const json = options.json === true
  const loading = new Interrupt()
  try {
    const llm = await loadModel(options, loading.signal)
    loading.dispose()
    try {
      if (!llm.info.hasChatTemplate) {
        throw new TensorRTError('ERR_CHAT_TEMPLATE', `${options.model} has no chat template`, { hint: 'use: node-tensorrt run --raw' })
      }
      const terminal = process.stdin.isTTY === true && process.stdout.isTTY === true
      const start: ChatMessage[] = options.system === undefined ? [] : [{ role: 'system', content: options.system }]
      let messages = [...start]
      let answer: AbortController | undefined
      const lines = createInterface({ input: process.stdin, output: terminal ? process.stdout : undefined, prompt: '> ', terminal })
      lines.on('SIGINT', () => {
        if (answer !== undefined) answer.abort(new Error('interrupted'))
        else lines.close()
      })
      const interrupt = terminal ? undefined : new Interrupt()
      interrupt?.signal.addEventListener('abort', () => {
        answer?.abort(interrupt.signal.reason)
        lines.close()
      })
      if (terminal) process.stderr.write(`${llm.backend}: ${llm.info.device}. ${HELP}.\n`)
      lines.prompt()
      for await (const line of lines) {
        const text = line.trim()
        if (text === '/exit') break
        if (text === '/reset') messages = [...start]
        else if (text === '/undo') messages = messages.slice(0, Math.max(start.length, messages.length - 2))
        else if (text.startsWith('/')) process.stderr.write(`${HELP}\n`)
        else if (text !== '') {
          const asked: ChatMessage[] = [...messages, { role: 'user', content: text }]
          answer = new AbortController()
          try {
            const generation = llm.generate({ messages: asked, ...samplingOf(options), signal: answer.signal })
            if (!json) {
              for await (const chunk of generation) await writeOut(chunk.text, answer.signal)
              await writeOut('\n', answer.signal)
            }
            const result = await generation.result()
            if (json) await writeOut(`${JSON.stringify({ text: result.text, finishReason: result.finishReason, usage: result.usage })}\n`, answer.signal)
            messages = [...asked, { role: 'assistant', content: result.text }]
          } catch (error) {
            // An answer that was stopped, or a question that does not fit, leaves the conversation as it was before it.
            if (error instanceof AbortError) process.stderr.write('\n(stopped)\n')
            else if (error instanceof TensorRTError && error.code === 'ERR_PROMPT_TOO_LONG') {
              // Who reads lines of JSON waits for one line per question.
              if (json) await writeOut(`${failureJson(error)}\n`, answer.signal)
              process.stderr.write(`The conversation has outgrown the model's context: ${error.message}. /reset starts over.\n`)
            } else throw error
          } finally {
            answer = undefined
          }
        }
        if (interrupt?.signal.aborted === true) break
        lines.prompt()
      }
      lines.close()
      interrupt?.dispose()
      if (interrupt?.signal.aborted === true) process.exitCode = interrupt.exitCode
      if (terminal) process.stdout.write('\n')
    } finally {
      await llm.close()
    }
  } catch (error) {
    if (loading.signal.aborted) process.exitCode = loading.exitCode
    else reportFailure(error, json)
  } finally {
    loading.dispose()
  }
}
