import { Command, InvalidArgumentError } from 'commander'
import { reportFailure } from './output'

/** Of a key in a file of keys, where a space ends it. */
export const KEY_NAME = /^[\w.@-]{1,64}$/

interface KeyOptions {
  name: string
  hash?: boolean
  json?: boolean
}

export function keyCommand(): Command {
  return new Command('key')
    .description('Make an API key for serve. The key is printed once; configurations hold its hash.')
    .option('--name <name>', 'what logs and metrics call it', parseName, 'default')
    .option('--hash', 'hash the key that stdin gives, instead of making one')
    .option('--json', 'one JSON object on stdout')
    .action(key)
}

function parseName(text: string): string {
  if (!KEY_NAME.test(text)) throw new InvalidArgumentError('expected 1 to 64 letters, digits and . _ @ -')
  return text
}

async function key(options: KeyOptions): Promise<void> {
  try {
    const { hashApiKey, makeApiKey } = require('../server') as typeof import('../server')
    const secret = options.hash === true ? (await readAll(process.stdin)).trim() : makeApiKey()
    const sha256 = hashApiKey(secret)
    const shown = options.hash === true ? {} : { key: secret }
    if (options.json === true) {
      process.stdout.write(`${JSON.stringify({ name: options.name, ...shown, sha256 })}\n`)
      return
    }
    if (options.hash !== true) process.stdout.write(`key:            ${secret}\n`)
    process.stdout.write(`for a key file: ${options.name} sha256:${sha256}\n`)
    process.stdout.write(`for a config:   { name: ${options.name}, sha256: ${sha256} }\n`)
  } catch (error) {
    reportFailure(error, options.json === true)
  }
}

async function readAll(stream: NodeJS.ReadStream): Promise<string> {
  let text = ''
  for await (const piece of stream.setEncoding('utf8')) text += piece
  return text
}
