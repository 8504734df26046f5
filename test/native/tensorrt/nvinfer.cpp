// Stands in for libnvinfer where only its version matters; its registry takes any plugin.
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// IPluginRegistry: registerCreator(IPluginCreatorInterface&, const char*) is the twelfth virtual function.
struct Registry {
  virtual bool f0() { return true; }
  virtual bool f1() { return true; }
  virtual bool f2() { return true; }
  virtual bool f3() { return true; }
  virtual bool f4() { return true; }
  virtual bool f5() { return true; }
  virtual bool f6() { return true; }
  virtual bool f7() { return true; }
  virtual bool f8() { return true; }
  virtual bool f9() { return true; }
  virtual bool f10() { return true; }
  virtual bool f11() { return true; }
  virtual bool f12() { return true; }
  virtual bool f13() { return true; }
  virtual bool f14() { return true; }
  virtual bool f15() { return true; }
  virtual bool f16() { return true; }
  virtual bool f17() { return true; }
  virtual bool f18() { return true; }
  virtual bool f19() { return true; }

 protected:
  ~Registry() = default;
};

struct ThisRegistry final : Registry {
} registry;

}  // namespace

EXPORT int getInferLibVersion() {
  return VERSION;
}
EXPORT void* getPluginRegistry() {
#ifdef LEAN
  return nullptr;  // nobody is to ask
#else
  return &registry;
#endif
}
#ifndef LEAN
EXPORT void* createInferBuilder_INTERNAL(void*, int) {
  return nullptr;
}
#endif
