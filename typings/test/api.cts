// The same through require().
import { expectTypeOf } from 'expect-type'
import tensorrt = require('node-tensorrt')
import type * as esm from 'node-tensorrt' with { 'resolution-mode': 'import' }

expectTypeOf(tensorrt.LLM.load).returns.resolves.toEqualTypeOf<tensorrt.LLM>()
// One declaration under both: an LLM that was imported is one that was required.
expectTypeOf<esm.LLM>().toEqualTypeOf<tensorrt.LLM>()
expectTypeOf<typeof esm.TensorRTError>().toEqualTypeOf<typeof tensorrt.TensorRTError>()
