/** What a session says and does when its backend dies and another takes over. */
import { TensorRTError } from '../../errors'
import type { SessionWarning } from './options'
import type { RequestShapes } from './request_shapes'
import type { SessionBackend } from './session_backend'
import type { SessionRequest } from './session_request'
import type { ModelSignature } from './signature'

/** Makes what takes over when the backend dies. */
export type BackendSource = () => Promise<SessionBackend>

export function deviceFailed(cause: unknown): TensorRTError {
  return new TensorRTError('ERR_BACKEND_DEAD', `The device failed: ${(cause as Error).message}`, {
    hint: 'create the session again, in a new process if the device does not recover',
    cause,
  })
}

export function nothingTookOver(dead: TensorRTError, cause: unknown): TensorRTError {
  return new TensorRTError('ERR_BACKEND_DEAD', `${dead.message}; and nothing could take over: ${(cause as Error).message}`, {
    cause: new AggregateError([dead.cause, cause], 'neither the device nor its replacement runs'),
  })
}

export function failedOver(device: string, cause: TensorRTError): SessionWarning {
  return { code: 'SESSION_FAILED_OVER', message: `The GPU failed, ${device} has taken over with onnxruntime: ${cause.message}`, cause }
}

/** From a backend to another one of the same model: the names are the same, their order may differ. */
export class RequestTransfer {
  private readonly inputs: readonly string[]
  /** By output of the old backend. */
  private readonly outputs: readonly number[]

  constructor(
    from: ModelSignature,
    private readonly to: RequestShapes,
  ) {
    this.inputs = from.inputs.map(({ name }) => name)
    this.outputs = from.outputs.map(({ name }) => to.signature.outputs.findIndex((output) => output.name === name))
  }

  /** @throws what the other backend has against the request */
  move(request: SessionRequest): void {
    const { shape, lengths, tensors } = this.to.classify(Object.fromEntries(this.inputs.map((name, i) => [name, request.tensors[i]!])))
    request.shape = shape
    request.lengths = lengths
    request.tensors = tensors
    request.wanted = request.wanted?.map((output) => this.outputs[output]!) ?? null
    request.alone = false
  }
}
