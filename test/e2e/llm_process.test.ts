/** How a process that uses an LLM ends. */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'

const program = join(__dirname, 'fixtures', 'llm_program.cjs')

function run(
  scenario: string,
): Promise<{ code: number | null; signal: string | null; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['--unhandled-rejections=strict', program, scenario], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (text: Buffer) => (stdout += text.toString()))
    child.stderr.on('data', (text: Buffer) => (stderr += text.toString()))
    const timer = setTimeout(() => {
      stderr += '\n[the test killed it: it hung]'
      child.kill('SIGKILL')
    }, 200_000)
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      resolve({ code, signal, stdout, stderr })
    })
  })
}

describe('a program', () => {
  it.each([
    ['that is idle and has closed nothing ends', 'idle', 0, '5\n'],
    ['stays until what is pending has ended', 'pending', 0, '200\n'],
    ['is not troubled by failures that nobody consumes', 'unconsumed', 0, 'ABORT_ERR enough\nclosed\n'],
    ['exits from within a stream', 'exit', 11, ''],
    ['closes in mid-decode', 'close', 0, 'ERR_DISPOSED\n'],
    ['gives up loading', 'abortLoad', 0, 'ABORT_ERR changed my mind\n'],
  ])('%s', async (_, scenario, code, stdout) => {
    expect(await run(scenario)).toEqual({ code, signal: null, stdout, stderr: '' })
  })

  it('reports an error of its own', async () => {
    const { code, stderr } = await run('uncaught')
    expect(code).toBe(1)
    expect(stderr).toContain('of the program')
  })
})
