/**
 * Process, event loop and build. prom-client's own default metrics hold observers that nothing ends, so a server that is
 * closed and opened again would collect them.
 */
import { readdir, readFile } from 'node:fs/promises'
import { monitorEventLoopDelay, type IntervalHistogram, performance } from 'node:perf_hooks'
import { version } from '../../version'
import { EVENT_LOOP_BUCKETS } from './buckets'
import type { HistogramSeries, MetricSet } from './series'

/** Milliseconds between samples of the event loop's delay. */
const DELAY_RESOLUTION_MS = 10

/** @returns ends the measurement */
export function collectProcess(set: MetricSet): () => void {
  set
    .gauge('node_tensorrt_build_info', 'Versions of package and Node, and platform, as labels; always 1', ['version', 'node_version', 'platform'])
    .series(version, process.version, `${process.platform}-${process.arch}`)
    .set(1)
  const cpu = set.counter('process_cpu_seconds_total', 'Processor time of the process, user and system').series()
  const user = set.counter('process_cpu_user_seconds_total', 'Processor time of the process in user mode').series()
  const system = set.counter('process_cpu_system_seconds_total', 'Processor time of the process in the kernel').series()
  set
    .gauge('process_start_time_seconds', 'Start of the process, seconds since the epoch')
    .series()
    .set(performance.timeOrigin / 1000)
  const resident = set.gauge('process_resident_memory_bytes', 'Resident memory of the process').series()
  const heapUsed = set.gauge('nodejs_heap_size_used_bytes', "V8's heap in use").series()
  const heapTotal = set.gauge('nodejs_heap_size_total_bytes', "V8's heap").series()
  const external = set.gauge('nodejs_external_memory_bytes', "Memory of objects outside V8's heap").series()
  const openFds = set.gauge('process_open_fds', 'Open file descriptors; Linux').series()
  const maxFds = set.gauge('process_max_fds', 'Most file descriptors that may be open; Linux').series()
  const delay = set
    .histogram('node_tensorrt_event_loop_delay_seconds', `How late the event loop was, sampled each ${DELAY_RESOLUTION_MS} ms`, EVENT_LOOP_BUCKETS)
    .series()
  const utilisation = set.gauge('node_tensorrt_event_loop_utilization_ratio', 'Share of the time since the last reading in which the event loop was busy, 0 to 1').series()

  const delays = monitorEventLoopDelay({ resolution: DELAY_RESOLUTION_MS })
  delays.enable()
  let loop = performance.eventLoopUtilization()
  set.onCollect(() => {
    const used = process.cpuUsage()
    cpu.set((used.user + used.system) / 1e6)
    user.set(used.user / 1e6)
    system.set(used.system / 1e6)
    const memory = process.memoryUsage()
    resident.set(memory.rss)
    heapUsed.set(memory.heapUsed)
    heapTotal.set(memory.heapTotal)
    external.set(memory.external)
    moveDelays(delays, delay)
    const now = performance.eventLoopUtilization()
    utilisation.set(performance.eventLoopUtilization(now, loop).utilization)
    loop = now
  })
  if (process.platform === 'linux') {
    set.onCollect(async () => {
      openFds.set((await readdir('/proc/self/fd')).length)
      maxFds.set(Number(/^Max open files\s+(\d+)/m.exec(await readFile('/proc/self/limits', 'utf8'))?.[1] ?? Infinity))
    })
  }
  return () => {
    delays.disable()
  }
}

/**
 * Adds Node's samples to a histogram of Prometheus', and empties the former. Node tells quantiles only, each in
 * microseconds, so the samples within a bound are found by bisection.
 */
export function moveDelays(from: Pick<IntervalHistogram, 'count' | 'max' | 'mean' | 'percentile' | 'reset'>, to: HistogramSeries): void {
  const { count } = from
  if (count === 0) return
  const resolution = DELAY_RESOLUTION_MS * 1e6
  // A sample is the time between two ticks of a timer.
  const lateness = (ns: number): number => Math.max(0, ns - resolution) / 1e9
  const longest = lateness(from.max)
  let within = 0
  EVENT_LOOP_BUCKETS.forEach((bound, i) => {
    let upTo = count
    if (longest > bound) {
      // The largest number of samples of which all are within the bound.
      let low = within
      let high = count
      while (low < high) {
        const middle = Math.ceil((low + high) / 2)
        if (lateness(from.percentile((middle / count) * 100)) <= bound) low = middle
        else high = middle - 1
      }
      upTo = low
    }
    to.counts[i]! += upTo - within
    within = upTo
  })
  to.counts[EVENT_LOOP_BUCKETS.length]! += count - within
  to.sum += lateness(from.mean) * count
  from.reset()
}
