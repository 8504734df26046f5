/** What all events of a stream begin with. */

/** What comes behind the id, by what it is made of: it changes once a second, and with the model. */
const tails = new Map<string, { created: number; model: string; fingerprint: string; text: string }>()

/** @param id needs no escapes in JSON */
export function streamHead(object: string, id: string, created: number, model: string, fingerprint: string): string {
  let tail = tails.get(object)
  if (tail?.created !== created || tail.model !== model || tail.fingerprint !== fingerprint) {
    const fields = JSON.stringify({ object, created, model, system_fingerprint: fingerprint })
    tail = { created, model, fingerprint, text: `,${fields.slice(1, -1)},"choices":[` }
    tails.set(object, tail)
  }
  return `data: {"id":"${id}"${tail.text}`
}
