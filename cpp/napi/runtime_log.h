// Lines of TensorRT's log on their way to a JavaScript function.
#pragma once

#include <napi.h>

#include <memory>

#include "core/module.h"

namespace nt::napi {

class LogRing;

// One listener; lets go of it at its end. Does not keep the process alive. Event loop.
class LogListener {
 public:
  static Expected<std::unique_ptr<LogListener>> create(napi_env env, TensorRtModule* module,
                                                       runtime::LogSeverity threshold, napi_value function);
  // Waits for lines that are being written; those that wait for the event loop are lost.
  ~LogListener();

 private:
  LogListener(TensorRtModule* module, std::shared_ptr<LogRing> ring);

  TensorRtModule* module_;
  std::shared_ptr<LogRing> ring_;
};

}  // namespace nt::napi
