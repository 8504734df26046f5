#include "tensorrt/runtime/profiler.h"

#include <array>
#include <charconv>
#include <new>

#include "core/text.h"

namespace nt::runtime {

void Profiler::reportLayerTime(const char* layer, float ms) noexcept {
  if (layer == nullptr) return;
  try {
    const std::lock_guard lock(mutex_);
    const auto [found, added] = indices_.try_emplace(layer, layers_.size());
    if (added) {
      try {
        layers_.push_back({layer, 0, 0});
      } catch (...) {
        indices_.erase(found);
        throw;
      }
    }
    Layer& entry = layers_[found->second];
    entry.ms += static_cast<double>(ms);
    ++entry.runs;
  } catch (const std::bad_alloc&) {
    // A profile that lacks a layer, in a process that is out of memory.
  }
}

std::string Profiler::take() {
  std::vector<Layer> layers;
  {
    const std::lock_guard lock(mutex_);
    layers.swap(layers_);
    indices_.clear();
  }
  std::string json = "[";
  for (const Layer& layer : layers) {
    if (json.size() > 1) json += ',';
    json += "{\"name\":";
    appendJsonString(json, layer.name);
    json += ",\"ms\":";
    std::array<char, 64> number{};  // by no locale's rules
    json.append(number.data(), std::to_chars(number.begin(), number.end(), layer.ms).ptr);
    json += ",\"runs\":" + std::to_string(layer.runs) + "}";
  }
  return json + "]";
}

}  // namespace nt::runtime
