/** node-gyp-build ships no types; this is the part that is used. */
declare module 'node-gyp-build' {
  const nodeGypBuild: {
    /** Path of the binary that fits this process. Throws when there is none. */
    path(root: string): string
  }
  export = nodeGypBuild
}
