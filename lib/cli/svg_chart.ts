/** Line charts as SVG, without a dependency. */

export interface Series {
  name: string
  points: readonly (readonly [x: number, y: number])[]
  /** Drawn with dashes: a bound or an ideal, not a measurement. */
  dashed?: boolean
}

export interface Panel {
  title: string
  xLabel: string
  yLabel: string
  series: readonly Series[]
  /** Marks each point. Default true. */
  dots?: boolean
  /** Default: from 0 to the largest value. */
  xMax?: number
  yMax?: number
}

const COLOURS = ['#2f6fb0', '#d9772b', '#3a9256', '#b5485d', '#7c62a8', '#6b6b6b']
const PANEL = { width: 360, height: 250, left: 58, right: 14, top: 34, bottom: 44 }
const LEGEND_LINE = 15

const escape = (text: string): string =>
  text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`)

/** Round numbers from 0 to at least `max`, about `count` of them: 1, 2 or 5 times a power of ten apart. */
export function ticks(max: number, count = 5): number[] {
  if (!(max > 0) || !Number.isFinite(max)) return [0, 1]
  const rough = max / count
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999)!
  return Array.from({ length: Math.ceil(max / step - 1e-9) + 1 }, (_, i) => i * step)
}

/** At most four digits that count, thousands apart. */
export function label(value: number): string {
  const rounded = Number(value.toPrecision(4))
  return Math.abs(rounded) >= 10_000 ? `${Number((rounded / 1000).toPrecision(4))}k` : String(rounded)
}

const finite = (points: Series['points']): Series['points'] => points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y))
const fixed = (value: number): string => String(Math.round(value * 10) / 10)

function drawPanel(panel: Panel): string {
  const { left, right, top, bottom, width } = PANEL
  const all = panel.series.flatMap((series) => finite(series.points))
  const xs = ticks(panel.xMax ?? Math.max(...all.map(([x]) => x), 0))
  const ys = ticks(panel.yMax ?? Math.max(...all.map(([, y]) => y), 0))
  const xEnd = panel.xMax ?? xs.at(-1)!
  const yEnd = panel.yMax ?? ys.at(-1)!
  const plotHeight = PANEL.height - top - bottom
  const plotWidth = width - left - right
  const x = (value: number): number => left + (Math.min(value, xEnd) / xEnd) * plotWidth
  const y = (value: number): number => top + plotHeight - (Math.min(value, yEnd) / yEnd) * plotHeight
  const parts = [`<text x="${left}" y="18" class="title">${escape(panel.title)}</text>`]
  for (const tick of ys.filter((value) => value <= yEnd * 1.001)) {
    parts.push(`<line x1="${left}" x2="${width - right}" y1="${fixed(y(tick))}" y2="${fixed(y(tick))}" class="grid"/>`)
    parts.push(`<text x="${left - 6}" y="${fixed(y(tick) + 3.5)}" class="y">${label(tick)}</text>`)
  }
  for (const tick of xs.filter((value) => value <= xEnd * 1.001)) {
    parts.push(`<text x="${fixed(x(tick))}" y="${top + plotHeight + 15}" class="x">${label(tick)}</text>`)
  }
  parts.push(`<line x1="${left}" x2="${width - right}" y1="${top + plotHeight}" y2="${top + plotHeight}" class="axis"/>`)
  parts.push(`<text x="${left + plotWidth / 2}" y="${PANEL.height - 10}" class="x">${escape(panel.xLabel)}</text>`)
  const middle = top + plotHeight / 2
  parts.push(`<text x="13" y="${middle}" class="x" transform="rotate(-90 13 ${middle})">${escape(panel.yLabel)}</text>`)
  panel.series.forEach((series, i) => {
    const colour = COLOURS[i % COLOURS.length]!
    const points = finite(series.points).map(([px, py]) => [fixed(x(px)), fixed(y(py))] as const)
    const dash = series.dashed === true ? ' stroke-dasharray="5 4"' : ''
    parts.push(`<polyline points="${points.map((point) => point.join(',')).join(' ')}" stroke="${colour}"${dash}/>`)
    if (panel.dots !== false && series.dashed !== true) {
      for (const [px, py] of points) parts.push(`<circle cx="${px}" cy="${py}" r="2.6" fill="${colour}"/>`)
    }
    const at = PANEL.height + i * LEGEND_LINE
    parts.push(`<line x1="${left}" x2="${left + 18}" y1="${at}" y2="${at}" stroke="${colour}" stroke-width="2"${dash}/>`)
    parts.push(`<text x="${left + 24}" y="${at + 4}">${escape(series.name)}</text>`)
  })
  return parts.join('')
}

/** Panels in rows of up to three, as the text of an SVG file. */
export function svgChart(title: string, subtitle: string, panels: readonly Panel[]): string {
  const columns = Math.max(1, Math.min(3, panels.length))
  const height = PANEL.height + LEGEND_LINE * Math.max(0, ...panels.map((panel) => panel.series.length))
  const width = Math.max(columns * PANEL.width, 420)
  const rows = Math.ceil(panels.length / columns)
  const head = 52
  const body = panels.map((panel, i) => {
    const at = `translate(${(i % columns) * PANEL.width} ${head + Math.floor(i / columns) * height})`
    return `<g transform="${at}">${drawPanel(panel)}</g>`
  })
  const total = head + rows * height + 6
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${total}" viewBox="0 0 ${width} ${total}">
<style>text{font:11px system-ui,sans-serif;fill:#333}.head{font-size:15px;font-weight:600}.sub{fill:#666}.title{font-weight:600;font-size:12px}.x{text-anchor:middle}.y{text-anchor:end}.grid{stroke:#e4e4e4}.axis{stroke:#888}polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}</style>
<rect width="100%" height="100%" fill="white"/>
<text x="14" y="22" class="head">${escape(title)}</text>
<text x="14" y="39" class="sub">${escape(subtitle)}</text>
${body.join('\n')}
</svg>
`
}
