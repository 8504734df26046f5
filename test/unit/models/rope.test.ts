import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import '../matchers'
import { ConfigReader } from '../../../lib/models'
import { readRope } from '../../../lib/models/rope'

interface RopeCase {
  name: string
  config: { head_dim: number; max_position_embeddings: number }
  invFreq: number[]
}
const reference = JSON.parse(readFileSync(join(__dirname, '..', '..', 'fixtures', 'rope.json'), 'utf8')) as {
  cases: RopeCase[]
}

/** Distance in units of the last place of float32. */
function ulps(a: number, b: number): number {
  const bits = new Int32Array(Float32Array.of(a, b).buffer)
  return Math.abs(bits[0]! - bits[1]!)
}

function read(config: object, headDim = 8, maxPositions = 64): number[] {
  return readRope(new ConfigReader(config, 'config.json'), headDim, maxPositions).invFreq
}

describe('rotary frequencies', () => {
  it.each(reference.cases)('equal those of transformers: $name', ({ config, invFreq }) => {
    const rope = readRope(new ConfigReader(config, 'config.json'), config.head_dim, config.max_position_embeddings)
    expect(rope.scale).toBe(1)
    expect(rope.invFreq).toHaveLength(invFreq.length)
    // torch's vectorised pow is not rounded correctly in the last place.
    rope.invFreq.forEach((value, i) => expect(ulps(value, invFreq[i]!), `pair ${i}`).toBeLessThanOrEqual(4))
  })

  it('takes theta from where it stands', () => {
    const plain = read({ rope_theta: 500 })
    expect(read({ rope_parameters: { rope_theta: 500, rope_type: 'default' }, rope_theta: 7 })).toEqual(plain)
    expect(read({ rope_scaling: { rope_type: 'default' }, rope_theta: 500 })).toEqual(plain)
    expect(read({})).toEqual(read({ rope_theta: 10_000 }))
  })

  it.each(['yarn', 'dynamic', 'longrope', 'su'])('refuses %s and names the key', (type) => {
    expect(() => read({ rope_scaling: { rope_type: type, factor: 2 } })).toThrowCode(
      'ERR_MODEL_UNSUPPORTED',
      /"rope_type".*default, linear, llama3/,
    )
    expect(() => read({ rope_scaling: { type, factor: 2 } })).toThrowCode('ERR_MODEL_UNSUPPORTED', /"type"/)
  })

  it('refuses a part of the head', () => {
    expect(() => read({ partial_rotary_factor: 0.5 })).toThrowCode('ERR_MODEL_UNSUPPORTED', /partial_rotary_factor/)
  })

  it.each([
    [{ rope_theta: 0 }, 'rope_theta'],
    [{ rope_theta: '1e4' }, 'rope_theta'],
    [{ rope_scaling: 'linear' }, 'rope_scaling'],
    [{ rope_scaling: { type: 'linear' } }, 'factor'],
    [{ rope_scaling: { type: 'linear', factor: -1 } }, 'factor'],
    [{ rope_scaling: { type: 7 } }, 'type'],
    [{ rope_scaling: { type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 4 } }, 'high_freq_factor'],
    [
      {
        rope_scaling: {
          type: 'llama3',
          factor: 8,
          low_freq_factor: 1,
          high_freq_factor: 4,
          original_max_position_embeddings: 0.5,
        },
      },
      'original_max',
    ],
  ])('refuses %j', (config, field) => {
    expect(() => read(config)).toThrowCode('ERR_MODEL_INVALID', new RegExp(`"${field}`))
  })
})
