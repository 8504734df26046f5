// What TensorRT's objects report their errors to. Their texts become lines of the log (logger.h), and so of
// the Status that the failing call leads to.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <atomic>
#include <mutex>

namespace nt {

// Must outlive the objects that it is set on. All methods may be called from any thread.
class ErrorRecorder final : public nvinfer1::IErrorRecorder {
 public:
  int32_t getNbErrors() const noexcept override;
  nvinfer1::ErrorCode getErrorCode(int32_t index) const noexcept override;
  ErrorDesc getErrorDesc(int32_t index) const noexcept override;
  bool hasOverflowed() const noexcept override;
  void clear() noexcept override;
  bool reportError(nvinfer1::ErrorCode code, ErrorDesc text) noexcept override;
  RefCount incRefCount() noexcept override { return ++references_; }
  RefCount decRefCount() noexcept override { return --references_; }

 private:
  // Of a fixed size: TensorRT reports errors also when it is out of memory.
  static constexpr int32_t kErrors = 8;
  static constexpr size_t kTextBytes = 512;
  struct Error {
    nvinfer1::ErrorCode code = nvinfer1::ErrorCode::kSUCCESS;
    std::array<char, kTextBytes> text{};
  };

  mutable std::mutex mutex_;
  std::array<Error, kErrors> errors_;
  int32_t count_ = 0;
  bool overflowed_ = false;
  std::atomic<RefCount> references_ = 0;
};

}  // namespace nt
