#include "tensorrt/onnx/progress.h"

#include <algorithm>
#include <new>

namespace nt {

void PhaseProgress::phaseStart(const char* name, const char* parent, int32_t steps) noexcept {
  if (name == nullptr) return;
  try {
    const std::lock_guard lock(mutex_);
    phases_.push_back({name, parent == nullptr ? "" : parent, std::max(steps, 1), 0});
    update(phases_.back().name);
  } catch (const std::bad_alloc&) {
    // Progress is not worth a build.
  }
}

bool PhaseProgress::stepComplete(const char* name, int32_t step) noexcept {
  if (name != nullptr) {
    const std::lock_guard lock(mutex_);
    for (auto phase = phases_.rbegin(); phase != phases_.rend(); ++phase) {
      if (phase->name != name) continue;
      phase->done = std::clamp(step + 1, phase->done, phase->steps);
      update(phase->name);
      break;
    }
  }
  return listener_ == nullptr || !listener_->isCancelled();
}

void PhaseProgress::phaseFinish(const char* name) noexcept {
  if (name == nullptr) return;
  const std::lock_guard lock(mutex_);
  const auto last =
      std::find_if(phases_.rbegin(), phases_.rend(), [&](const Phase& phase) { return phase.name == name; });
  if (last == phases_.rend()) return;
  last->done = last->steps;
  update(last->name);
  phases_.erase(std::next(last).base());
}

double PhaseProgress::fraction() const noexcept {
  const std::lock_guard lock(mutex_);
  return reached_;
}

// The children that run share the step that their parent is in.
double PhaseProgress::fractionOf(const Phase& phase, size_t depth) const noexcept {
  double done = phase.done;
  // A hierarchy that names itself as its parent must not recurse for ever.
  if (depth < 16 && phase.done < phase.steps) {
    double within = 0;
    for (const Phase& child : phases_) {
      if (&child != &phase && child.parent == phase.name)
        within = std::max(within, fractionOf(child, depth + 1));
    }
    done += std::min(within, 1.0);
  }
  return done / phase.steps;
}

// With the mutex held.
void PhaseProgress::update(const std::string& phase) noexcept {
  for (const Phase& root : phases_) {
    if (root.parent.empty()) reached_ = std::max(reached_, fractionOf(root, 0));
  }
  if (listener_ != nullptr)
    listener_->onProgress(0, 1, phase, static_cast<int32_t>(reached_ * kSteps), kSteps);
}

}  // namespace nt
