/** Bar charts as SVG, drawn by vega without a browser. */
import { writeFileSync } from 'node:fs'

export interface Bar {
  panel: string
  label: string
  value: number
}

/** One panel per `panel`, each with its own scale; the value stands at the end of its bar. */
export async function writeBars(file: string, title: string, subtitle: string, bars: Bar[]): Promise<void> {
  const [vega, lite] = await Promise.all([import('vega'), import('vega-lite')])
  const panels = [...new Set(bars.map((bar) => bar.panel))]
  const { spec } = lite.compile({
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: { text: title, subtitle, anchor: 'start' },
    background: 'white',
    vconcat: panels.map((panel) => ({
      data: { values: bars.filter((bar) => bar.panel === panel) },
      width: 460,
      height: { step: 24 },
      encoding: {
        y: { field: 'label', type: 'nominal' as const, sort: null, title: null, axis: { labelLimit: 240 } },
        x: { field: 'value', type: 'quantitative' as const, title: panel },
      },
      layer: [
        { mark: { type: 'bar' as const, color: '#4c78a8' } },
        {
          mark: { type: 'text' as const, align: 'left' as const, dx: 4 },
          encoding: { text: { field: 'value', type: 'quantitative' as const, format: ',.3~r' } },
        },
      ],
    })),
  })
  writeFileSync(file, await new vega.View(vega.parse(spec), { renderer: 'none' }).toSVG())
}

export interface Point {
  panel: string
  line: string
  x: number
  y: number
}

/** One panel per `panel`, one line per `line`. `rules` are drawn across, by panel. */
export async function writeLines(
  file: string,
  title: string,
  subtitle: string,
  x: string,
  points: readonly Point[],
  rules: readonly { panel: string; y: number }[] = [],
): Promise<void> {
  const [vega, lite] = await Promise.all([import('vega'), import('vega-lite')])
  const panels = [...new Set(points.map((point) => point.panel))]
  const { spec } = lite.compile({
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: { text: title, subtitle, anchor: 'start' },
    background: 'white',
    vconcat: panels.map((panel) => ({
      width: 460,
      height: 180,
      layer: [
        {
          data: { values: points.filter((point) => point.panel === panel) },
          mark: { type: 'line' as const, point: true },
          encoding: {
            x: { field: 'x', type: 'quantitative' as const, title: x },
            y: { field: 'y', type: 'quantitative' as const, title: panel },
            color: { field: 'line', type: 'nominal' as const, title: null, sort: null },
          },
        },
        {
          data: { values: rules.filter((rule) => rule.panel === panel) },
          mark: { type: 'rule' as const, strokeDash: [4, 4] },
          encoding: { y: { field: 'y', type: 'quantitative' as const } },
        },
      ],
    })),
  })
  writeFileSync(file, await new vega.View(vega.parse(spec), { renderer: 'none' }).toSVG())
}
