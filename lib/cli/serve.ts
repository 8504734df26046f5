import { Command, Option } from 'commander'
import { reportFailure } from './output'
import { SETTING_GROUPS, type Setting } from './serve_settings'

export function serveCommand(): Command {
  const command = new Command('serve')
    .description('Serve a model over HTTP, with the API of OpenAI.')
    .argument('[model]', 'model folder in Hugging Face layout, or engine folder (default: of the configuration, else the bundled demo model)')
    .option('-c, --config <file>', 'YAML or JSON with these settings; flags and variables go before it')
    .option('--print-config', 'print the configuration as it results, and end')
  for (const { title, settings } of SETTING_GROUPS) {
    command.optionsGroup(title)
    for (const setting of settings) for (const option of optionsOf(setting)) command.addOption(option)
  }
  return command
    .addHelpText(
      'after',
      `
Every flag has a variable: --max-queue is NODE_TENSORRT_SERVE_MAX_QUEUE, too. Flags go before variables, these before the file.
SIGTERM and Ctrl-C end the server when its requests have ended; a second one at once.
Exit codes: 0 ended, 1 failure or requests cut off by --drain, 2 usage, 130 or 143 ended by a second signal.`,
    )
    .action(async (model: string | undefined, options: Record<string, unknown>) => {
      // Not before it is needed: other commands start without it.
      const { serve, UsageError } = require('./serve_run') as typeof import('./serve_run')
      try {
        await serve(model, options)
      } catch (error) {
        const usage = error instanceof UsageError
        reportFailure(usage ? error.cause : error, false)
        if (usage) process.exitCode = 2
      }
    })
}

/** All values are text here: one check is for flags, variables and files alike. */
function optionsOf({ flag, kind, placeholder, help, off }: Setting): Option[] {
  if (kind.type !== 'boolean') return [new Option(`--${flag} <${placeholder ?? 'value'}>`, help)]
  const on = new Option(`--${flag}`, help)
  // Both, as `--no-x` alone would be on by default for commander, and so go before a file that says off.
  return off === undefined ? [on] : [on.hideHelp(), new Option(`--no-${flag}`, off)]
}
