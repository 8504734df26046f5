#include "tensorrt/plan_file.h"

#include <cstring>
#include <string_view>
#include <type_traits>

namespace nt {

namespace {

constexpr std::string_view kMagic = "NTPLAN01";
constexpr uint32_t kMaxProfiles = 64;
constexpr uint32_t kMaxEngines = 256;

class Writer {
 public:
  template <class T>
  void number(T value) {
    static_assert(std::is_integral_v<T>);
    bytes(&value, sizeof value);
  }
  void bytes(const void* data, size_t count) {
    const auto* begin = static_cast<const char*>(data);
    out_.insert(out_.end(), begin, begin + count);
  }
  void sized(const void* data, size_t count) {
    number(uint64_t{count});
    bytes(data, count);
  }
  void profiles(const std::vector<RowProfile>& list) {
    number(static_cast<uint32_t>(list.size()));
    for (const RowProfile& p : list) {
      number(p.min);
      number(p.opt);
      number(p.max);
    }
  }
  std::vector<char> take() { return std::move(out_); }

 private:
  std::vector<char> out_;
};

// After the first read past the end, `ok` stays false and every read gives 0 or nothing.
class Reader {
 public:
  explicit Reader(std::span<const char> in) : in_(in) {}

  bool ok() const { return ok_; }
  bool atEnd() const { return ok_ && in_.empty(); }
  std::span<const char> bytes(uint64_t count) {
    if (!ok_ || count > in_.size()) {
      ok_ = false;
      return {};
    }
    const auto out = in_.first(static_cast<size_t>(count));
    in_ = in_.subspan(static_cast<size_t>(count));
    return out;
  }
  template <class T>
  T number() {
    T value{};
    const auto data = bytes(sizeof value);
    if (ok_) std::memcpy(&value, data.data(), sizeof value);
    return value;
  }
  std::span<const char> sized() { return bytes(number<uint64_t>()); }
  std::vector<RowProfile> profiles() {
    const auto count = number<uint32_t>();
    if (count > kMaxProfiles) ok_ = false;
    std::vector<RowProfile> list;
    for (uint32_t i = 0; ok_ && i < count; ++i) {
      RowProfile p;
      p.min = number<int32_t>();
      p.opt = number<int32_t>();
      p.max = number<int32_t>();
      list.push_back(p);
    }
    return list;
  }

 private:
  std::span<const char> in_;
  bool ok_ = true;
};

Status invalid(const std::string& what) {
  return {"ERR_ENGINE_INVALID", "The engine's plan is not valid: " + what, "Build the engine again"};
}

}  // namespace

std::vector<char> writePlanFile(const PlanFile& file) {
  Writer out;
  out.bytes(kMagic.data(), kMagic.size());
  out.number(file.header.libraryVersion);
  out.number(file.header.computeMajor);
  out.number(file.header.computeMinor);
  out.number(static_cast<uint32_t>(file.header.dtype));
  out.profiles(file.header.layerProfiles);
  out.profiles(file.header.headProfiles);
  out.number(static_cast<uint32_t>(file.engines.size()));
  for (const PlanEngine& engine : file.engines) {
    out.sized(engine.signature.data(), engine.signature.size());
    out.sized(engine.plan.data(), engine.plan.size());
  }
  return out.take();
}

Expected<PlanFile> readPlanFile(std::span<const char> bytes) {
  Reader in(bytes);
  const auto magic = in.bytes(kMagic.size());
  if (!in.ok() || std::string_view(magic.data(), magic.size()) != kMagic)
    return invalid("it does not begin as one");
  PlanFile file;
  file.header.libraryVersion = in.number<int32_t>();
  file.header.computeMajor = in.number<int32_t>();
  file.header.computeMinor = in.number<int32_t>();
  const auto dtype = in.number<uint32_t>();
  if (dtype > static_cast<uint32_t>(DType::kBF16)) return invalid("it names an unknown type");
  file.header.dtype = static_cast<DType>(dtype);
  file.header.layerProfiles = in.profiles();
  file.header.headProfiles = in.profiles();
  const auto count = in.number<uint32_t>();
  if (count > kMaxEngines) return invalid("it claims " + std::to_string(count) + " engines");
  for (uint32_t i = 0; in.ok() && i < count; ++i) {
    const auto signature = in.sized();
    const auto plan = in.sized();
    file.engines.push_back({{signature.begin(), signature.end()}, {plan.begin(), plan.end()}});
  }
  if (!in.atEnd()) return invalid(in.ok() ? "bytes follow its end" : "it is cut short");
  if (!checkProfiles("layer", file.header.layerProfiles) ||
      !checkProfiles("head", file.header.headProfiles)) {
    return invalid("its profiles make no sense");
  }
  return file;
}

Status checkProfiles(const char* name, const std::vector<RowProfile>& profiles) {
  const std::string what = std::string(name) + " profiles: ";
  if (profiles.empty() || profiles.size() > kMaxProfiles) {
    return Status::invalid(what + "from 1 to " + std::to_string(kMaxProfiles) + " are possible");
  }
  int32_t last = 0;
  for (const RowProfile& p : profiles) {
    if (p.min < 1 || p.opt < p.min || p.max < p.opt)
      return Status::invalid(what + "1 <= min <= opt <= max must hold");
    // A row count between two profiles could not run.
    if (p.max <= last || p.min > last + 1)
      return Status::invalid(what + "maxima must ascend and leave no gap");
    last = p.max;
  }
  return {};
}

}  // namespace nt
