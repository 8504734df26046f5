/**
 * What the hardware would allow: a model's bytes and arithmetic over the bandwidth and the arithmetic that limits.py measured.
 *
 * A step takes the matrices (read once for all rows, or multiplied, whichever is longer) and the attention (keys and values read, or
 * multiplied, whichever is longer), one behind the other, and nothing else: no launches, no sampling, no host.
 */

/**
 * @param config a Hugging Face config of a Llama-shaped decoder; 16-bit weights and keys. Embedding rows are looked up, not multiplied
 * @param limits `{ readGBs, matmulTFLOPs }`
 */
export function roofline(config, limits) {
  const { hidden_size: hidden, intermediate_size: inner, num_hidden_layers: layers, num_attention_heads: heads, vocab_size: vocab } = config
  const kvHeads = config.num_key_value_heads ?? heads
  const head = config.head_dim ?? hidden / heads
  const layer = hidden * head * (2 * heads + 2 * kvHeads) + 3 * hidden * inner
  const matrices = layers * layer + vocab * hidden
  const kvTokenBytes = layers * 2 * kvHeads * head * 2
  const bytesPerSecond = limits.readGBs * 1e9
  const flopsPerSecond = limits.matmulTFLOPs * 1e12
  const readMs = (bytes) => (bytes / bytesPerSecond) * 1e3
  const multiplyMs = (flops) => (flops / flopsPerSecond) * 1e3

  /**
   * Least milliseconds of a step.
   * @param rows tokens that go through the layers
   * @param outputs tokens that get logits
   * @param read tokens whose keys and values are read
   * @param pairs (query, key) pairs of the prompts, all heads alike; decode rows only read
   */
  function stepMs({ rows, outputs, read, pairs = 0 }) {
    const flops = 2 * (layers * layer * rows + vocab * hidden * outputs)
    return Math.max(readMs(2 * matrices), multiplyMs(flops)) + Math.max(readMs(read * kvTokenBytes), multiplyMs(layers * 4 * heads * head * pairs))
  }

  /**
   * The loads' bound: an ideal engine under continuous batching, each step as long as stepMs. Prompts first, as far as a step's tokens and
   * the sequences at once allow; no request is put back.
   * @param requests `[{ input, output, at? }]`, tokens and seconds, in order of arrival
   * @param kvTokens places in the KV cache
   */
  function loadSeconds(requests, { maxSequences = 256, maxStepTokens = 8192, kvTokens = Infinity } = {}) {
    let seconds = 0
    let next = 0
    let held = 0
    let running = []
    while (next < requests.length || running.length > 0) {
      if (running.length === 0) seconds = Math.max(seconds, requests[next].at ?? 0)
      const step = { rows: running.length, outputs: running.length, read: 0, pairs: 0 }
      for (const sequence of running) step.read += ++sequence.length
      held += running.length
      for (; next < requests.length; next++) {
        const { input, output, at = 0 } = requests[next]
        if (at > seconds || running.length >= maxSequences) break
        // The first of a step is taken in any case: a long prompt would else wait for ever.
        if (step.rows > 0 && (step.rows + input > maxStepTokens || held + input + output > kvTokens)) break
        running.push({ length: input, left: output })
        held += input
        step.rows += input
        step.outputs++
        step.read += input
        step.pairs += (input * (input + 1)) / 2
      }
      seconds += stepMs(step) / 1e3
      running = running.filter((sequence) => {
        if (--sequence.left > 0) return true
        held -= sequence.length
        return false
      })
    }
    return seconds
  }

  return {
    layers,
    kvTokenBytes,
    weightBytes: 2 * (matrices + (config.tie_word_embeddings ? 0 : vocab * hidden)),
    decodeMs: (rows, context) => stepMs({ rows, outputs: rows, read: rows * context }),
    /** A whole prompt and its first token; causal attention multiplies half of the square. */
    prefillMs: (tokens) => stepMs({ rows: tokens, outputs: 1, read: tokens, pairs: (tokens * tokens) / 2 }),
    loadSeconds,
  }
}
