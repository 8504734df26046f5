#include "napi/runtime_memory.h"

namespace nt::napi {

MemoryObject::MemoryObject(RuntimeEnvironment& environment, Owned<runtime::Memory>&& target)
    : TypedObject(environment, std::move(target)),
      bytes_(this->target()->bytes()),
      memoryKind_(this->target()->kind()) {}

MemoryObject::~MemoryObject() {
  if (buffer_ != nullptr) napi_delete_reference(env(), buffer_);
}

std::vector<napi_property_descriptor> MemoryObject::properties() {
  return {
      getterProperty("bytes", method<MemoryObject, &MemoryObject::bytes>),
      getterProperty("kind", method<MemoryObject, &MemoryObject::memoryKind>),
      getterProperty("address", method<MemoryObject, &MemoryObject::address>),
      methodProperty("arrayBuffer", method<MemoryObject, &MemoryObject::arrayBuffer>),
      closeProperty<MemoryObject>(),
  };
}

Expected<napi_value> MemoryObject::bytes(Arguments&) {
  napi_value number = nullptr;
  napi_create_double(env(), static_cast<double>(bytes_), &number);
  return number;
}

Expected<napi_value> MemoryObject::memoryKind(Arguments&) {
  napi_value text = nullptr;
  const char* name = memoryKind_ == runtime::MemoryKind::kPinned ? "pinned" : "device";
  napi_create_string_utf8(env(), name, NAPI_AUTO_LENGTH, &text);
  return text;
}

Expected<napi_value> MemoryObject::address(Arguments&) {
  if (!isOpen()) return disposed();
  napi_value number = nullptr;
  napi_create_bigint_uint64(env(), reinterpret_cast<uintptr_t>(target()->address()), &number);
  return number;
}

Expected<napi_value> MemoryObject::arrayBuffer(Arguments&) {
  if (!isOpen()) return disposed();
  if (memoryKind_ != runtime::MemoryKind::kPinned) {
    return Status::invalid("Device memory has no ArrayBuffer", "copy it to pinned memory first");
  }
  napi_value buffer = nullptr;
  if (buffer_ != nullptr) {
    if (napi_get_reference_value(env(), buffer_, &buffer) == napi_ok && buffer != nullptr) return buffer;
    return Status("ERR_INTERNAL", "The ArrayBuffer is gone");
  }
  auto hold = std::make_shared<BufferHold>(
      BufferHold{Owned<runtime::Memory>(environment()->releases().prepare(module()), target()), nullptr});
  auto hint = std::make_unique<std::shared_ptr<BufferHold>>(hold);
  const napi_status status = napi_create_external_arraybuffer(
      env(), target()->address(), bytes_, &MemoryObject::onBufferFreed, hint.get(), &buffer);
  if (status == napi_no_external_buffers_allowed) {
    return Status("ERR_INTERNAL", "This JavaScript runtime allows no ArrayBuffer over memory of others",
                  "Electron and builds of V8 with a memory cage are not supported");
  }
  if (status != napi_ok) return Status("ERR_INTERNAL", "Could not create an ArrayBuffer over pinned memory");
  hint.release();
  if (napi_create_reference(env(), buffer, 1, &buffer_) != napi_ok) {
    return Status("ERR_INTERNAL", "Could not reference an ArrayBuffer");
  }
  hold_ = std::move(hold);
  return buffer;
}

void MemoryObject::letGo(std::shared_ptr<Ticket> ticket) noexcept {
  // At teardown (no environment) the scripts that could see the bytes have ended.
  if (hold_ && hold_->memory.get() != nullptr && environment() != nullptr) {
    napi_value buffer = nullptr;
    bool detached = true;
    if (napi_get_reference_value(env(), buffer_, &buffer) == napi_ok && buffer != nullptr &&
        napi_is_detached_arraybuffer(env(), buffer, &detached) == napi_ok && !detached) {
      // The ArrayBuffer's reference is the last of ours: its finalizer, which comes soon, ends the close. Set
      // first, as nothing forbids it to come at once.
      hold_->closing = ticket;
      if (napi_detach_arraybuffer(env(), buffer) == napi_ok) ticket.reset();
    }
  }
  hold_.reset();
  TypedObject::letGo(std::move(ticket));
}

void MemoryObject::onBufferFreed(napi_env, void*, void* hint) noexcept {
  const std::unique_ptr<std::shared_ptr<BufferHold>> hold(static_cast<std::shared_ptr<BufferHold>*>(hint));
  (*hold)->memory.letGo(std::move((*hold)->closing));
}

}  // namespace nt::napi
