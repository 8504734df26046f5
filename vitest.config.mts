import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts', 'examples/**/*.test.ts'],
    exclude: ['test/gpu/**', '**/node_modules/**'],
    // A process each: a native crash takes one file down, not the run.
    pool: 'forks',
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // What is waited for comes at once, but on a machine that is slow, and busy with something else.
    expect: { poll: { timeout: 45_000, interval: 5 } },
  },
})
