/** An executor whose steps fail now and then, after they have run: cache and slots are as a late failure leaves them. */
export class FaultyExecutor {
  failures = 0
  #inner
  #shouldFail
  #error

  /** @param error of the failed steps */
  constructor(inner, shouldFail, error = { code: 'ERR_STEP_FAILED', message: 'injected', retryable: true }) {
    this.#inner = inner
    this.#shouldFail = shouldFail
    this.#error = error
  }

  get info() {
    return this.#inner.info
  }

  start(onResult) {
    this.#inner.start((result) => {
      if (result.error !== undefined || !this.#shouldFail(result)) return onResult(result)
      this.failures++
      return onResult({ ...result, tokens: new Int32Array(0), logprobs: [], logits: new Float32Array(0), error: this.#error })
    })
  }

  openSlot(init) {
    this.#inner.openSlot(init)
  }

  closeSlot(slot) {
    this.#inner.closeSlot(slot)
  }

  setMask(slot, mask) {
    this.#inner.setMask(slot, mask)
  }

  submit(step) {
    this.#inner.submit(step)
  }

  close() {
    return this.#inner.close()
  }
}
