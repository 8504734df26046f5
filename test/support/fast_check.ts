/**
 * fast-check with the same cases in each run, so that what fails fails again. `NT_FAST_CHECK_SEED` names others, a number, or
 * `random` for new ones in each run; a failure says its seed.
 */
import fc from 'fast-check'

const named = process.env.NT_FAST_CHECK_SEED ?? ''
if (named !== 'random') fc.configureGlobal({ ...fc.readConfigureGlobal(), seed: named === '' ? 1 : Number(named) })

export default fc
