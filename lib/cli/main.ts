#!/usr/bin/env node
import { Command, CommanderError } from 'commander'
import { TensorRTError } from '../errors'
import { benchCommand } from './bench'
import { buildCommand } from './build'
import { chatCommand } from './chat'
import { doctorCommand } from './doctor'
import { keyCommand } from './key'
import { reportFailure } from './output'
import { runCommand } from './run'
import { serveCommand } from './serve'
import { verifyCommand } from './verify'
import { version } from '../version'

const program = new Command('node-tensorrt')
  .description('Run language models from Node: continuous batching, a paged KV cache and token streaming.')
  .version(version)
  // `bench` and `bench serve` have options of one name.
  .enablePositionalOptions()
  .addHelpText(
    'after',
    `
Examples:
  $ node-tensorrt run "Write a short story about a shy robot."
  $ node-tensorrt run --model ./my-llama --temperature 0 --json "What is 7 plus 5?"
  $ node-tensorrt chat --system "Begin every answer with: Ahoy!"
  $ node-tensorrt serve ./my-llama --port 8000 --api-key-file keys.txt
  $ node-tensorrt build ./my-llama -o ./my-llama-engine
  $ node-tensorrt build bert.onnx -o ./bert-engine --precision fp16 --profile 'ids:1x128..8x128..32x128'
  $ node-tensorrt verify ./my-llama-engine
  $ node-tensorrt bench --requests 64 --concurrency 16
  $ node-tensorrt bench serve --url http://localhost:8000 --rate 1,2,4 --svg load.svg
  $ node-tensorrt doctor --json

Exit codes: 0 success, 1 failure, 2 usage, 130 interrupted, 143 terminated.`,
  )
  .addCommand(runCommand())
  .addCommand(chatCommand())
  .addCommand(serveCommand())
  .addCommand(keyCommand())
  .addCommand(buildCommand())
  .addCommand(verifyCommand())
  .addCommand(benchCommand())
  .addCommand(doctorCommand())

// A reader that goes away (`| head`) is no failure: what is written after that goes nowhere. Commands that work for long stop then.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return
    if (stream === process.stdout) process.stderr.write(`node-tensorrt: The output cannot be written: ${error.message}\n`)
    // There is nobody left to tell, and nothing that is worth going on for.
    process.exit(1)
  })
}

// Commander ends with 1 on a usage error; 2 is the convention that tells it from a failure of the work itself.
const usageExit = (command: Command): void => {
  command.showHelpAfterError('(add --help for the options)')
  command.exitOverride((error) => {
    process.exitCode = error.exitCode === 0 ? 0 : 2
    throw error
  })
  for (const child of command.commands) usageExit(child)
}
usageExit(program)

program.parseAsync().catch((error: unknown) => {
  const json = process.argv.includes('--json')
  if (error instanceof CommanderError) {
    // Commander has said it on stderr.
    if (json && process.exitCode === 2 && error.code !== 'commander.help') reportFailure(new TensorRTError('ERR_INVALID_ARGUMENT', error.message.replace(/^error: /, '')), json)
    process.exitCode = error.exitCode === 0 ? 0 : 2
    return
  }
  reportFailure(error, json)
})
