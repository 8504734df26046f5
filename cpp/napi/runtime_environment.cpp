#include "napi/runtime_environment.h"

#include "napi/addon_data.h"
#include "napi/errors.h"
#include "napi/runtime_classes.h"
#include "napi/runtime_log.h"
#include "napi/runtime_object.h"

namespace nt::napi {

const char* className(ObjectKind kind) noexcept {
  constexpr std::array<const char*, kObjectKinds> names = {"NativeRuntime", "NativeEngine", "NativeContext",
                                                           "NativeStream",  "NativeEvent",  "NativeMemory",
                                                           "NativeGraph"};
  return names[static_cast<size_t>(kind)];
}

RuntimeEnvironment::RuntimeEnvironment(napi_env env) : env_(env) {}

RuntimeEnvironment::~RuntimeEnvironment() = default;

RuntimeEnvironment* RuntimeEnvironment::find(napi_env env) noexcept {
  const AddonData* addon = AddonData::of(env);
  return addon == nullptr ? nullptr : addon->runtime.get();
}

Expected<RuntimeEnvironment*> RuntimeEnvironment::of(napi_env env) {
  AddonData* addon = AddonData::of(env);
  if (addon == nullptr) return Status("ERR_INTERNAL", "The addon's instance data is gone");
  if (addon->runtime) return addon->runtime.get();
  auto environment = std::make_shared<RuntimeEnvironment>(env);
  if (Status status = environment->open(); !status) return status;
  addon->runtime = std::move(environment);
  return addon->runtime.get();
}

Status RuntimeEnvironment::open() {
  for (size_t i = 0; i < kObjectKinds; ++i) {
    const auto kind = static_cast<ObjectKind>(i);
    const std::vector<napi_property_descriptor> properties = classProperties(kind);
    napi_value constructor = nullptr;
    if (napi_define_class(env_, className(kind), NAPI_AUTO_LENGTH, &NativeObject::construct, nullptr,
                          properties.size(), properties.data(), &constructor) != napi_ok ||
        napi_create_reference(env_, constructor, 1, &classes_[i]) != napi_ok) {
      return {"ERR_INTERNAL", "Could not define the classes of the native runtime"};
    }
  }
  if (Status status = completions_->open(env_); !status) return status;
  // Cleanup hooks run last come first served: this one runs before that of the thread-safe function.
  napi_add_env_cleanup_hook(env_, &RuntimeEnvironment::onEnvironmentTeardown, this);
  return Status::ok();
}

napi_value RuntimeEnvironment::wrap(std::unique_ptr<NativeObject> object) noexcept {
  napi_value constructor = nullptr;
  napi_value value = nullptr;
  const auto index = static_cast<size_t>(object->kind());
  underConstruction_ = std::move(object);
  const bool made = napi_get_reference_value(env_, classes_[index], &constructor) == napi_ok &&
                    napi_new_instance(env_, constructor, 0, nullptr, &value) == napi_ok;
  if (made && !underConstruction_) return value;
  underConstruction_.reset();
  throwStatus(env_, {"ERR_INTERNAL", "Could not create an object of the native runtime"});
  return nullptr;
}

// On the event loop's thread, when a Worker is terminated or the environment ends otherwise: JavaScript can
// run no more. Whatever is open is let go of and waited for, for neither CUDA nor TensorRT may be at work
// while the process exits.
void RuntimeEnvironment::onEnvironmentTeardown(void* data) noexcept {
  auto* environment = static_cast<RuntimeEnvironment*>(data);
  environment->completions_->drop();
  environment->log_.reset();
  environment->pool_.stop();
  while (environment->objects_ != nullptr) environment->objects_->abandon();
  environment->releases_->drain();
}

}  // namespace nt::napi
