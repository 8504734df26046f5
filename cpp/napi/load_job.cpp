#include "napi/load_job.h"

#include <utility>

#include "napi/async_task.h"
#include "napi/backend_object.h"
#include "napi/errors.h"

namespace nt::napi {
namespace {

class LoadTask final : public AsyncTask {
 public:
  LoadTask(BackendFactory make, AtTeardown atTeardown) : make_(std::move(make)), atTeardown_(atTeardown) {}

  // Ends a backend that nobody took over, because the environment ended first.
  ~LoadTask() override {
    if (!made_ || *made_ == nullptr) return;
    (*made_)->requestStop();
    (*made_)->join();
  }

  void run() noexcept override {
    made_ = make_();
    // It holds the plan's bytes, which nobody needs any more.
    make_ = nullptr;
  }

  napi_value take(napi_env env, Status& status) noexcept override {
    status = made_.status();
    return status.isOk() ? BackendObject::create(env, *std::move(made_)) : nullptr;
  }

  bool joinsAtTeardown() const noexcept override { return atTeardown_ == AtTeardown::kJoin; }

 private:
  BackendFactory make_;
  AtTeardown atTeardown_;
  Expected<std::unique_ptr<Backend>> made_ = Status{"ERR_INTERNAL", "The load has not ended"};
};

}  // namespace

napi_value loadBackend(napi_env env, BackendFactory make, AtTeardown atTeardown) noexcept {
  return guarded(env, [&] {
    return startTask(env, "node-tensorrt:load", std::make_shared<LoadTask>(std::move(make), atTeardown));
  });
}

}  // namespace nt::napi
