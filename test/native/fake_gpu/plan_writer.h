// Plans of the fake TensorRT for native tests; test/support/fake_gpu.ts is the same for TypeScript.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nt::fake {

// `json` as in README.md.
inline std::string makePlan(std::string_view json) {
  uint32_t hash = 2166136261U;
  for (const char c : json) hash = (hash ^ static_cast<uint8_t>(c)) * 16777619U;
  std::string plan = "NTFAKEPLAN1\n";
  for (const uint32_t word : {static_cast<uint32_t>(json.size()), hash}) {
    for (int i = 0; i < 4; ++i) plan += static_cast<char>(word >> (8 * i));
  }
  plan += json;
  return plan;
}

// y = a * x + b of float32 [-1, 4], 1 to 8 rows; `a` is the refittable weight "a".
inline std::string scalePlan(double a = 2, double b = 1) {
  return makePlan(
      R"({"name":"scale","refittable":true,"activationBytes":1024,)"
      R"("tensors":[{"name":"x","mode":"input","shape":[-1,4]},{"name":"y","mode":"output","shape":[-1,4]}],)"
      R"("profiles":[{"x":{"min":[1,4],"opt":[4,4],"max":[8,4]}}],"weights":{"a":{"values":[)" +
      std::to_string(a) + R"(]}},"layers":[{"op":"scale","inputs":["x"],"output":"y","weight":"a","b":)" +
      std::to_string(b) + "}]}");
}

}  // namespace nt::fake
