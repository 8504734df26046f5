// NativeEngine of lib/native/runtime_addon.ts.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "napi/runtime_object.h"

namespace nt::napi {

class EngineObject final : public TypedObject<runtime::Engine, ObjectKind::kEngine> {
 public:
  using TypedObject::TypedObject;
  static std::vector<napi_property_descriptor> properties();
  bool describe(napi_env env, napi_value self) noexcept override;

 private:
  Expected<napi_value> layers(Arguments& arguments);
  Expected<napi_value> createContext(Arguments& arguments);
  Expected<napi_value> refittableWeights(Arguments& arguments);
  Expected<napi_value> refit(Arguments& arguments);
  Expected<napi_value> serialize(Arguments& arguments);

  // An engine takes one call at a time.
  std::shared_ptr<Strand> strand_ = std::make_shared<Strand>();
};

}  // namespace nt::napi
