// NativeMemory of lib/native/runtime_addon.ts.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "napi/runtime_object.h"

namespace nt::napi {

class MemoryObject final : public TypedObject<runtime::Memory, ObjectKind::kMemory> {
 public:
  MemoryObject(RuntimeEnvironment& environment, Owned<runtime::Memory>&& target);
  ~MemoryObject() override;
  static std::vector<napi_property_descriptor> properties();

 private:
  // What the ArrayBuffer holds: its bytes may outlive the handle, where a script has moved them elsewhere
  // (ArrayBuffer.prototype.transfer).
  struct BufferHold {
    Owned<runtime::Memory> memory;
    std::shared_ptr<Ticket> closing;
  };

  void letGo(std::shared_ptr<Ticket> ticket) noexcept override;

  Expected<napi_value> bytes(Arguments& arguments);
  Expected<napi_value> memoryKind(Arguments& arguments);
  Expected<napi_value> address(Arguments& arguments);
  Expected<napi_value> arrayBuffer(Arguments& arguments);
  static void onBufferFreed(napi_env env, void* data, void* hint) noexcept;

  uint64_t bytes_;
  runtime::MemoryKind memoryKind_;
  napi_ref buffer_ = nullptr;
  std::shared_ptr<BufferHold> hold_;
};

}  // namespace nt::napi
