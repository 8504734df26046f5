import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts', 'examples/**/*.test.ts'],
    exclude: ['test/gpu/**', '**/node_modules/**'],
    // A process each: a native crash takes one file down, not the run.
    pool: 'forks',
    // Ends what hangs; nothing here is measured by it.
    testTimeout: 240_000,
    hookTimeout: 240_000,
    // What is waited for comes at once, but on a machine that is slow, and busy with something else.
    expect: { poll: { timeout: 45_000, interval: 5 } },
  },
})
