import { HashExecutor } from '../../examples/custom-executor/hash_executor'
import { describeExecutor } from './executor_suite'

describeExecutor('examples/custom-executor', () => new HashExecutor({ numPages: 64, maxSlots: 4, maxStepTokens: 64 }))
