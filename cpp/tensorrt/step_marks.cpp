#include "tensorrt/step_marks.h"

namespace nt {

cudaError_t StepMarks::mark(int32_t part, cudaStream_t stream) {
  if (used_ == marks_.size()) {
    Mark made;
    if (const cudaError_t error = cudaEventCreate(made.event.put()); error != cudaSuccess) return error;
    marks_.push_back(std::move(made));
  }
  Mark& next = marks_[used_++];
  next.part = part;
  return cudaEventRecord(next.event.get(), stream);
}

std::vector<float> StepMarks::microseconds(cudaEvent_t begun, int32_t parts) const {
  std::vector<float> result(static_cast<size_t>(parts));
  cudaEvent_t before = begun;
  for (size_t i = 0; i < used_; ++i) {
    float ms = 0;
    if (cudaEventElapsedTime(&ms, before, marks_[i].event.get()) != cudaSuccess) return {};
    result[static_cast<size_t>(marks_[i].part)] += ms * 1000;
    before = marks_[i].event.get();
  }
  return result;
}

}  // namespace nt
