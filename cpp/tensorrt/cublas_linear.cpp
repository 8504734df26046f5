#include "tensorrt/cublas_linear.h"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace nt {

namespace {

// What the library's recommended workspace on Hopper is.
constexpr uint64_t kWorkspaceBytes = uint64_t{32} << 20;
constexpr std::array kFileNames = {"libcublasLt.so.13", "libcublasLt.so.12"};
constexpr const char* kToolkit = "/usr/local/cuda/lib64";
constexpr const char* kOff = "off";

// The part of cuBLASLt's C interface that is used here; its values have been the same since CUDA 11.
constexpr int32_t kReal32F = 0;
constexpr int32_t kReal16F = 2;
constexpr int32_t kReal16BF = 14;
constexpr int32_t kCompute32F = 68;
constexpr int32_t kOpTranspose = 1;
constexpr int32_t kDescTransA = 3;
constexpr int32_t kDescEpilogue = 7;
constexpr int32_t kDescBiasPointer = 8;
constexpr int32_t kEpilogueBias = 4;
constexpr int32_t kPreferenceWorkspace = 1;

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspaceBytes;
  int32_t status;
  float waves;
  int32_t reserved[4];
};

std::string variable() {
  const char* value = std::getenv("NODE_TENSORRT_CUBLAS");
  return value == nullptr ? "" : value;
}

Status failure(const char* call, int32_t status) {
  return {"ERR_CUDA", std::string(call) + ": status " + std::to_string(status),
          "NODE_TENSORRT_CUBLAS=off leaves all linear layers to TensorRT"};
}

}  // namespace

struct CublasLinear::Api {
  size_t (*getVersion)();
  int32_t (*create)(void**);
  int32_t (*destroy)(void*);
  int32_t (*descCreate)(void**, int32_t compute, int32_t scale);
  int32_t (*descDestroy)(void*);
  int32_t (*descSet)(void*, int32_t attribute, const void* value, size_t bytes);
  int32_t (*layoutCreate)(void**, int32_t type, uint64_t rows, uint64_t columns, int64_t stride);
  int32_t (*layoutDestroy)(void*);
  int32_t (*preferenceCreate)(void**);
  int32_t (*preferenceDestroy)(void*);
  int32_t (*preferenceSet)(void*, int32_t attribute, const void* value, size_t bytes);
  int32_t (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference,
                       int32_t wanted, Heuristic* results, int32_t* found);
  int32_t (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* aLayout, const void* b,
                    void* bLayout, const void* beta, const void* c, void* cLayout, void* d, void* dLayout,
                    const Algorithm* algorithm, void* workspace, size_t workspaceBytes, cudaStream_t stream);

  // Opened once for the process, and for good.
  static Expected<const Api*> open();

 private:
  static Expected<const Api*> find();
  bool resolve(void* library);
};

bool CublasLinear::Api::resolve(void* library) {
  const auto get = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    return function != nullptr;
  };
  return get(getVersion, "cublasLtGetVersion") && get(create, "cublasLtCreate") &&
         get(destroy, "cublasLtDestroy") && get(descCreate, "cublasLtMatmulDescCreate") &&
         get(descDestroy, "cublasLtMatmulDescDestroy") && get(descSet, "cublasLtMatmulDescSetAttribute") &&
         get(layoutCreate, "cublasLtMatrixLayoutCreate") &&
         get(layoutDestroy, "cublasLtMatrixLayoutDestroy") &&
         get(preferenceCreate, "cublasLtMatmulPreferenceCreate") &&
         get(preferenceDestroy, "cublasLtMatmulPreferenceDestroy") &&
         get(preferenceSet, "cublasLtMatmulPreferenceSetAttribute") &&
         get(heuristic, "cublasLtMatmulAlgoGetHeuristic") && get(matmul, "cublasLtMatmul");
}

Expected<const CublasLinear::Api*> CublasLinear::Api::find() {
  const std::string named = variable();
  if (named == kOff) return Status("ERR_IO", "NODE_TENSORRT_CUBLAS is off");
  const std::vector<std::string> folders = named.empty()
                                               ? std::vector<std::string>{"", std::string(kToolkit) + "/"}
                                               : std::vector<std::string>{named + "/"};
  std::string why;
  const auto add = [&](const std::string& reason) { why += (why.empty() ? "" : "; ") + reason; };
  for (const std::string& folder : folders) {
    for (const char* file : kFileNames) {
      const std::string path = folder + file;
      void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
      if (library == nullptr) {
        const char* said = dlerror();
        add(said == nullptr ? path : said);
        continue;
      }
      auto api = std::make_unique<Api>();
      if (api->resolve(library)) return static_cast<const Api*>(api.release());
      add(path + " lacks functions of cuBLASLt");
      dlclose(library);
    }
  }
  return Status("ERR_IO", "cuBLASLt was not found: " + why,
                "Install the CUDA toolkit's cuBLAS, or set NODE_TENSORRT_CUBLAS to the folder that holds it, "
                "or to 'off'");
}

Expected<const CublasLinear::Api*> CublasLinear::Api::open() {
  static const auto* result = new Expected<const Api*>(find());
  return *result;
}

// Layouts are of column-major matrices: y^T [n, rows] = weight [n, k] * x^T [k, rows], so the weight is the
// transposed operand.
struct CublasLinear::Plan {
  explicit Plan(const Api* functions) : api(functions) {}
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (desc != nullptr) api->descDestroy(desc);
    for (void* layout : {weight, x, y}) {
      if (layout != nullptr) api->layoutDestroy(layout);
    }
  }

  const Api* api;
  void* desc = nullptr;
  void* weight = nullptr;
  void* x = nullptr;
  void* y = nullptr;
  Algorithm algorithm{};
};

// What does not belong to a load lives as long as the process: the library keeps memory for each handle that
// was made, and a model that is loaded again asks for the same shapes.
struct CublasLinear::Shared {
  // rows, n, k, with bias, with residual
  using Key = std::tuple<int32_t, int32_t, int32_t, bool, bool>;

  // Of the thread's device.
  static Expected<std::shared_ptr<Shared>> of(const Api* api, int32_t type);
  Expected<Plan*> planOf(const LinearArgs& args);

  std::mutex mutex;  // guards the rest
  const Api* api = nullptr;
  void* handle = nullptr;
  int32_t type = 0;
  std::map<Key, std::unique_ptr<Plan>> plans;
  // Since a product failed: the next load makes a handle of its own, as a device that was reset needs it.
  std::atomic<bool> failed = false;

  Shared() = default;
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  // Where it failed, with its last user.
  ~Shared() {
    plans.clear();
    if (handle != nullptr) api->destroy(handle);
  }
};

Expected<std::shared_ptr<CublasLinear::Shared>> CublasLinear::Shared::of(const Api* api, int32_t type) {
  static std::mutex making;
  static auto* made = new std::map<std::pair<int, int32_t>, std::shared_ptr<Shared>>;
  int device = 0;
  if (Status status = toStatus(cudaGetDevice(&device), "cudaGetDevice"); !status) return status;
  const std::lock_guard lock(making);
  std::shared_ptr<Shared>& shared = (*made)[{device, type}];
  if (shared != nullptr && !shared->failed) return shared;
  auto fresh = std::make_shared<Shared>();
  fresh->api = api;
  if (const int32_t status = api->create(&fresh->handle); status != 0)
    return failure("cublasLtCreate", status);
  fresh->type = type;
  shared = std::move(fresh);
  return shared;
}

bool CublasLinear::isNamed() {
  const std::string named = variable();
  return !named.empty() && named != kOff;
}

Expected<std::unique_ptr<CublasLinear>> CublasLinear::create(DType dtype) {
  if (dtype == DType::kF32)
    return Status("ERR_MODEL_UNSUPPORTED", "cuBLASLt runs layers of 16-bit types here");
  const Expected<const Api*> api = Api::open();
  if (!api) return api.status();
  std::unique_ptr<CublasLinear> result(new CublasLinear);
  Expected<std::shared_ptr<Shared>> shared = Shared::of(*api, dtype == DType::kF16 ? kReal16F : kReal16BF);
  if (!shared) return shared.status();
  result->shared_ = *std::move(shared);
  // 130101 is 13.1.1, as 12.8.3 is 120803.
  const size_t version = (*api)->getVersion();
  result->version_ = std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
                     std::to_string(version % 100);
  auto workspace = DeviceBuffer::allocate(kWorkspaceBytes, "cuBLASLt's workspace");
  if (!workspace) return workspace.status();
  result->workspace_ = *std::move(workspace);
  return result;
}

Expected<CublasLinear::Plan*> CublasLinear::Shared::planOf(const LinearArgs& args) {
  const Key key{args.rows, args.n, args.k, args.bias != nullptr, args.residual != nullptr};
  if (const auto known = plans.find(key); known != plans.end()) return known->second.get();
  auto plan = std::make_unique<Plan>(api);
  const auto rows = static_cast<uint64_t>(args.rows);
  const auto n = static_cast<uint64_t>(args.n);
  const auto k = static_cast<uint64_t>(args.k);
  int32_t status = api->descCreate(&plan->desc, kCompute32F, kReal32F);
  if (status == 0) status = api->descSet(plan->desc, kDescTransA, &kOpTranspose, sizeof kOpTranspose);
  if (status == 0 && args.bias != nullptr)
    status = api->descSet(plan->desc, kDescEpilogue, &kEpilogueBias, sizeof kEpilogueBias);
  if (status == 0) status = api->layoutCreate(&plan->weight, type, k, n, args.k);
  if (status == 0) status = api->layoutCreate(&plan->x, type, k, rows, args.k);
  if (status == 0) status = api->layoutCreate(&plan->y, type, n, rows, args.n);
  void* preference = nullptr;
  if (status == 0) status = api->preferenceCreate(&preference);
  if (status == 0) {
    status = api->preferenceSet(preference, kPreferenceWorkspace, &kWorkspaceBytes, sizeof kWorkspaceBytes);
  }
  Heuristic best{};
  int32_t found = 0;
  if (status == 0) {
    status = api->heuristic(handle, plan->desc, plan->weight, plan->x, plan->y, plan->y, preference, 1, &best,
                            &found);
  }
  if (preference != nullptr) api->preferenceDestroy(preference);
  if (status == 0 && found > 0) status = best.status;
  if (status != 0 || found == 0) {
    return Status("ERR_CUDA", "cuBLASLt has no kernel for " + std::to_string(args.rows) + " x " +
                                  std::to_string(args.n) + " x " + std::to_string(args.k) + ": status " +
                                  std::to_string(status));
  }
  plan->algorithm = best.algorithm;
  return plans.emplace(key, std::move(plan)).first->second.get();
}

Status CublasLinear::prepare(const LinearArgs& shape) {
  const std::lock_guard lock(shared_->mutex);
  return shared_->planOf(shape).status();
}

Status CublasLinear::enqueue(const LinearArgs& args, cudaStream_t stream) {
  // A plan's bias is set for each call.
  const std::lock_guard lock(shared_->mutex);
  const Expected<Plan*> found = shared_->planOf(args);
  if (!found) return found.status();
  const Plan& plan = **found;
  const Api& api = *shared_->api;
  int32_t status = 0;
  if (args.bias != nullptr) status = api.descSet(plan.desc, kDescBiasPointer, &args.bias, sizeof args.bias);
  const float one = 1;
  const float addend = args.residual == nullptr ? 0 : 1;
  const void* c = args.residual == nullptr ? args.y : args.residual;
  if (status == 0) {
    status =
        api.matmul(shared_->handle, plan.desc, &one, args.weight, plan.weight, args.x, plan.x, &addend, c,
                   plan.y, args.y, plan.y, &plan.algorithm, workspace_.as<>(), kWorkspaceBytes, stream);
  }
  if (status == 0) return {};
  shared_->failed = true;
  return failure("cublasLtMatmul", status);
}

}  // namespace nt
