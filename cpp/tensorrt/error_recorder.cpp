#include "tensorrt/error_recorder.h"

#include <string_view>

#include "tensorrt/logger.h"

namespace nt {

using nvinfer1::ErrorCode;

int32_t ErrorRecorder::getNbErrors() const noexcept {
  const std::lock_guard lock(mutex_);
  return count_;
}

ErrorCode ErrorRecorder::getErrorCode(int32_t index) const noexcept {
  const std::lock_guard lock(mutex_);
  return index < 0 || index >= count_ ? ErrorCode::kUNSPECIFIED_ERROR
                                      : errors_[static_cast<size_t>(index)].code;
}

ErrorRecorder::ErrorDesc ErrorRecorder::getErrorDesc(int32_t index) const noexcept {
  const std::lock_guard lock(mutex_);
  return index < 0 || index >= count_ ? "" : errors_[static_cast<size_t>(index)].text.data();
}

bool ErrorRecorder::hasOverflowed() const noexcept {
  const std::lock_guard lock(mutex_);
  return overflowed_;
}

void ErrorRecorder::clear() noexcept {
  const std::lock_guard lock(mutex_);
  count_ = 0;
  overflowed_ = false;
}

bool ErrorRecorder::reportError(ErrorCode code, ErrorDesc text) noexcept {
  logRecordedError(code, text);
  const std::lock_guard lock(mutex_);
  if (count_ == kErrors) {
    overflowed_ = true;
  } else {
    Error& error = errors_[static_cast<size_t>(count_++)];
    error.code = code;
    const std::string_view said = text == nullptr ? "" : text;
    error.text[said.copy(error.text.data(), kTextBytes - 1)] = '\0';
  }
  return true;  // fatal: the call ends
}

}  // namespace nt
