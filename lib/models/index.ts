export { ConfigReader } from './config_reader'
export { graphFromConfig, SUPPORTED_ARCHITECTURES } from './families'
export { kvGeometry, kvPageBytes, type KvGeometry } from './geometry'
export * from './graph'
