/** Clients that ask a server for outputs which they know: most behave, some read slowly, some leave. */
import http from 'node:http'
import { seededRandom } from '../../lib/llm'

export interface KnownOutput {
  tokens: number[]
  maxTokens: number
  /** Of the greedy run of this prompt alone. */
  text: string
}

export interface FaultLoad {
  url: string
  /** Whether to send one more, when so many have been sent. */
  more: (sent: number) => boolean
  /** Clients at once; each sends one request after another. */
  streams: number
  seed: number
  known: readonly KnownOutput[]
}

/** Requests by what became of them. */
export interface FaultCounts {
  /** Whose client left; of no other kind. */
  left: number
  /** All others. */
  wellFormed: number
  /** Status 200, the text of the solo run, all of it. */
  correct: number
  /** The same, of requests whose client tried again as OpenAI's do: twice at most, where a status said so before the answer began. */
  correctAfterRetries: number
  /** Requests of slow readers among the well-formed. */
  slow: number
  /** What came instead at the first attempt. */
  otherwise: Record<string, number>
}

type Manner = 'whole' | 'stream' | 'slow' | 'leave'

interface Answer {
  /** '' where all is as it should be. */
  fault: string
  mayRetry: boolean
}

/** Shares of requests. */
const MANNERS: readonly [Manner, number][] = [
  ['whole', 0.25],
  ['stream', 0.55],
  ['slow', 0.1],
  ['leave', 0.1],
]
const MAX_RETRIES = 2
const RETRY_MS = 500
/** A slow reader reads in bursts. */
const PAUSE_MS = 150
const PAUSES = 8
const LONGEST_STAY_MS = 800

export async function runFaultLoad({ url, more, streams, seed, known }: FaultLoad): Promise<FaultCounts> {
  const counts: FaultCounts = { left: 0, wellFormed: 0, correct: 0, correctAfterRetries: 0, slow: 0, otherwise: {} }
  const agent = new http.Agent({ keepAlive: true, maxFreeSockets: streams })
  const random = seededRandom(seed)
  let sent = 0
  const draw = (): Manner => {
    let left = random()
    for (const [manner, share] of MANNERS) if ((left -= share) < 0) return manner
    return 'stream'
  }
  const worker = async (): Promise<void> => {
    while (more(sent)) {
      sent++
      const output = known[Math.floor(random() * known.length)]!
      const manner = draw()
      if (manner === 'leave') {
        await leave(url, agent, output, random() * LONGEST_STAY_MS)
        counts.left++
        continue
      }
      counts.wellFormed++
      if (manner === 'slow') counts.slow++
      let answer = await ask(url, agent, output, manner)
      if (answer.fault === '') counts.correct++
      else counts.otherwise[answer.fault] = (counts.otherwise[answer.fault] ?? 0) + 1
      for (let retry = 0; answer.fault !== '' && answer.mayRetry && retry < MAX_RETRIES; retry++) {
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS * 2 ** retry))
        answer = await ask(url, agent, output, manner)
      }
      if (answer.fault === '') counts.correctAfterRetries++
    }
  }
  await Promise.all(Array.from({ length: streams }, worker))
  agent.destroy()
  return counts
}

function send(url: string, agent: http.Agent, { tokens, maxTokens }: KnownOutput, stream: boolean): http.ClientRequest {
  const body = JSON.stringify({ prompt: tokens, max_tokens: maxTokens, temperature: 0, ignore_eos: true, stream })
  const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }
  return http.request(new URL('/v1/completions', url), { method: 'POST', agent, headers }).end(body)
}

function leave(url: string, agent: http.Agent, output: KnownOutput, afterMs: number): Promise<void> {
  return new Promise((resolve) => {
    const request = send(url, agent, output, true)
    request.on('error', () => {})
    request.on('response', (response) => response.on('error', () => {}).resume())
    request.once('close', resolve)
    setTimeout(() => request.destroy(), afterMs)
  })
}

function ask(url: string, agent: http.Agent, output: KnownOutput, manner: Manner): Promise<Answer> {
  return new Promise((resolve) => {
    const request = send(url, agent, output, manner !== 'whole')
    const broken = (error: NodeJS.ErrnoException): void => resolve({ fault: `connection: ${error.code ?? error.message}`, mayRetry: true })
    request.on('error', broken)
    request.on('response', (response) => {
      let text = ''
      response.setEncoding('utf8')
      response.on('error', broken)
      response.on('data', (part: string) => (text += part))
      response.on('end', () => resolve(judge(response.statusCode!, response.headers['x-should-retry'], text, output, manner !== 'whole')))
      if (manner === 'slow') readSlowly(response)
    })
  })
}

function readSlowly(response: http.IncomingMessage): void {
  let pauses = 0
  response.on('data', () => {
    if (pauses++ >= PAUSES) return
    response.pause()
    setTimeout(() => response.resume(), PAUSE_MS)
  })
}

interface Body {
  error?: { code?: string | null; type?: string }
  choices?: { text: string; finish_reason: string | null }[]
}

function judge(status: number, shouldRetry: unknown, answer: string, output: KnownOutput, stream: boolean): Answer {
  if (status !== 200) {
    const { error } = parse(answer)
    return { fault: `${status} ${error?.code ?? error?.type ?? 'without an error'}`, mayRetry: shouldRetry !== 'false' && (status === 429 || status >= 500) }
  }
  let text = ''
  let finish: string | null | undefined
  let done = !stream
  for (const data of stream ? eventsOf(answer) : [answer]) {
    if (data === '[DONE]') {
      done = true
      continue
    }
    const { error, choices } = parse(data)
    if (error !== undefined) return { fault: `error in a stream: ${error.code ?? error.type}`, mayRetry: false }
    text += choices?.[0]?.text ?? ''
    finish = choices?.[0]?.finish_reason ?? finish
  }
  if (!done) return { fault: 'stream without its end', mayRetry: false }
  if (finish !== 'length') return { fault: `finish_reason ${finish}`, mayRetry: false }
  return { fault: text === output.text ? '' : 'another text', mayRetry: false }
}

function parse(text: string): Body {
  try {
    return JSON.parse(text) as Body
  } catch {
    return { error: { code: 'no JSON' } }
  }
}

function eventsOf(text: string): string[] {
  return text
    .split('\n\n')
    .filter((event) => event.startsWith('data: '))
    .map((event) => event.slice(6))
}
