#include "napi/tensorrt_arguments.h"

#include <vector>

#include "napi/arguments.h"

namespace nt::napi {
namespace {

// `[min, opt, max]` of each profile, one after the other.
std::vector<RowProfile> readProfiles(FieldReader& fields, const char* field) {
  const std::vector<int32_t> numbers = fields.int32Array(field);
  if (numbers.size() % 3 != 0) fields.fail(field, "an Int32Array of three numbers a profile");
  std::vector<RowProfile> profiles;
  for (size_t i = 0; i + 2 < numbers.size(); i += 3)
    profiles.push_back({numbers[i], numbers[i + 1], numbers[i + 2]});
  return profiles;
}

DType readDType(FieldReader& fields, const char* field) {
  const std::string name = fields.string(field);
  if (name == "fp32") return DType::kF32;
  if (name == "fp16") return DType::kF16;
  if (name != "bf16") fields.fail(field, "'bf16', 'fp16' or 'fp32'");
  return DType::kBF16;
}

}  // namespace

Expected<ForModule<ProbeOptions>> readProbeOptions(napi_env env, napi_value value) {
  ForModule<ProbeOptions> read;
  FieldReader fields(env, value, "options");
  read.modulePath = fields.string("modulePath");
  read.options.libraryPath = fields.string("libraryPath");
  if (!fields.status()) return fields.status();
  return read;
}

Expected<ForModule<BuildOptions>> readBuildOptions(napi_env env, napi_value value) {
  ForModule<BuildOptions> read;
  BuildOptions& options = read.options;
  FieldReader fields(env, value, "options");
  read.modulePath = fields.string("modulePath");
  options.graph = fields.string("graph");
  options.libraryPath = fields.string("libraryPath");
  options.device = fields.int32("device");
  options.dtype = readDType(fields, "precision");
  options.layerProfiles = readProfiles(fields, "layerProfiles");
  options.headProfiles = readProfiles(fields, "headProfiles");
  options.optimizationLevel = fields.int32("optimizationLevel");
  options.workspaceBytes = fields.uint53("workspaceBytes");
  options.timingCache = fields.bytes("timingCache");
  if (!fields.status()) return fields.status();
  return read;
}

Expected<ForModule<TensorRtOptions>> readTensorRtOptions(napi_env env, napi_value value) {
  ForModule<TensorRtOptions> read;
  TensorRtOptions& options = read.options;
  FieldReader fields(env, value, "options");
  read.modulePath = fields.string("modulePath");
  options.graph = fields.string("graph");
  options.plan = fields.bytes("plan");
  options.files = fields.strings("files");
  options.libraryPath = fields.string("libraryPath");
  options.device = fields.int32("device");
  options.pageSize = fields.int32("pageSize");
  options.numPages = fields.int32("numPages");
  options.kvCacheFraction = fields.float32("kvCacheFraction");
  options.maxSlots = fields.int32("maxSlots");
  options.maxStepTokens = fields.int32("maxStepTokens");
  options.cudaGraphs = fields.boolean("cudaGraphs");
  options.plainKernels = fields.boolean("plainKernels");
  options.faultAtStep = fields.int32("faultAtStep");
  if (!fields.status()) return fields.status();
  return read;
}

}  // namespace nt::napi
