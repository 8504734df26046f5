/** What /health/live and /health/ready go by where nobody says otherwise: what the model says of itself. */
import type { LLM } from '../llm'
import type { HealthProbe } from './seams'

export function healthOf(llm: LLM): HealthProbe {
  return {
    notLive: () => {
      const { state, restartable } = llm.health()
      return state === 'dead' && !restartable ? 'The backend is dead, and cannot be made again in this process' : undefined
    },
    notReady: () => {
      const { ready, state, stuck, oldestStepMs } = llm.health()
      if (ready) return undefined
      return stuck ? `A step has been running for ${Math.round(oldestStepMs / 1000)} s` : `The backend is ${state}`
    },
  }
}
