// Bundles the benchmarks of the server, for machines without development dependencies: copy build/bench, build/Release, dist,
// models/tiny-storyteller, package.json and the production node_modules, then `node build/bench/overhead.cjs`. They take the same flags as their sources.
//   node scripts/bundle-bench.mjs [overhead|burst|goodput|hostile|faults ...]
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { bundle } from './bundle.mjs'
import { root } from './tools.mjs'

const PROGRAMS = ['overhead', 'burst', 'goodput', 'hostile', 'faults']

const given = process.argv.slice(2)
const unknown = given.filter((name) => !PROGRAMS.includes(name))
if (unknown.length > 0) throw new Error(`There is no ${unknown.join(', ')}; there are ${PROGRAMS.join(', ')}`)

// Reports name the commit of what they measure, which git cannot tell there.
const git = (...args) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim()
const modified = git('status', '--porcelain', '--untracked-files=no') === '' ? '' : '-modified'
const define = { 'process.env.BENCH_COMMIT': JSON.stringify(git('rev-parse', '--short', 'HEAD') + modified) }

// The one that draws bitmaps where there is a `canvas`; pictures are SVG, for which the one of browsers is enough.
const redirect = (source) => (source === 'vega-canvas' ? join(root, 'node_modules', 'vega-canvas', 'build', 'vega-canvas.browser.js') : undefined)

for (const name of given.length > 0 ? given : PROGRAMS) {
  // As deep as the sources, whose paths to models and reports hold here too.
  const target = join(root, 'build', 'bench', `${name}.cjs`)
  await bundle({ entry: join(root, 'bench', 'server', `${name}.ts`), target, format: 'cjs', define, redirect })
  console.log(target)
}
