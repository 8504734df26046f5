#include "napi/arguments.h"

#include <cmath>
#include <limits>
#include <utility>

namespace nt::napi {
namespace {

constexpr double kMaxSafeInteger = 9007199254740991.0;  // 2^53 - 1
constexpr uint32_t kMaxFiles = 65536;

bool isType(napi_env env, napi_value value, napi_valuetype wanted) noexcept {
  napi_valuetype type = napi_undefined;
  return napi_typeof(env, value, &type) == napi_ok && type == wanted;
}

Status mustBe(const std::string& name, const char* expected) {
  return Status::invalid(name + " must be " + expected);
}

bool isInt32(double number) noexcept {
  return number >= std::numeric_limits<int32_t>::min() && number <= std::numeric_limits<int32_t>::max() &&
         number == std::trunc(number);
}

template <typename T>
Expected<std::vector<T>> readTypedArray(napi_env env, napi_value value, const std::string& name,
                                        napi_typedarray_type wanted, const std::string& kind) {
  bool isTyped = false;
  napi_typedarray_type type = napi_int8_array;
  size_t length = 0;
  void* data = nullptr;
  napi_value buffer = nullptr;
  if (napi_is_typedarray(env, value, &isTyped) != napi_ok || !isTyped ||
      napi_get_typedarray_info(env, value, &type, &length, &data, &buffer, nullptr) != napi_ok ||
      type != wanted) {
    return mustBe(name, kind.c_str());
  }
  bool detached = false;
  if (napi_is_detached_arraybuffer(env, buffer, &detached) == napi_ok && detached) {
    return mustBe(name, (kind + " whose buffer is not detached").c_str());
  }
  const auto* first = static_cast<const T*>(data);
  return length == 0 ? std::vector<T>{} : std::vector<T>(first, first + length);
}

}  // namespace

FieldReader::FieldReader(napi_env env, napi_value object, std::string name)
    : env_(env), object_(object), name_(std::move(name)) {
  if (!isType(env, object, napi_object)) status_ = mustBe(name_, "an object");
}

void FieldReader::fail(const char* field, const char* expected) {
  if (status_.isOk()) status_ = mustBe(name_ + "." + field, expected);
}

bool FieldReader::read(const char* field, napi_value* value) {
  if (!status_.isOk()) return false;
  if (napi_get_named_property(env_, object_, field, value) == napi_ok) return true;
  fail(field, "readable");
  return false;
}

bool FieldReader::readNumber(const char* field, double* number) {
  napi_value value = nullptr;
  if (!read(field, &value)) return false;
  if (isType(env_, value, napi_number) && napi_get_value_double(env_, value, number) == napi_ok) return true;
  fail(field, "a number");
  return false;
}

int32_t FieldReader::int32(const char* field) {
  double number = 0;
  if (!readNumber(field, &number)) return 0;
  if (isInt32(number)) return static_cast<int32_t>(number);
  fail(field, "a 32-bit integer");
  return 0;
}

float FieldReader::float32(const char* field) {
  double number = 0;
  if (!readNumber(field, &number)) return 0;
  if (std::abs(number) <= std::numeric_limits<float>::max()) return static_cast<float>(number);
  fail(field, "a finite number within the range of a float");
  return 0;
}

uint64_t FieldReader::uint53(const char* field) {
  double number = 0;
  if (!readNumber(field, &number)) return 0;
  if (number >= 0 && number <= kMaxSafeInteger && number == std::trunc(number)) {
    return static_cast<uint64_t>(number);
  }
  fail(field, "an integer in [0, 2^53)");
  return 0;
}

bool FieldReader::boolean(const char* field) {
  napi_value value = nullptr;
  bool boolean = false;
  if (!read(field, &value)) return false;
  if (isType(env_, value, napi_boolean) && napi_get_value_bool(env_, value, &boolean) == napi_ok)
    return boolean;
  fail(field, "true or false");
  return false;
}

std::string FieldReader::string(const char* field) {
  napi_value value = nullptr;
  if (!read(field, &value)) return {};
  Expected<std::string> text = readString(env_, value, name_ + "." + field);
  if (text) return *std::move(text);
  status_ = text.status();
  return {};
}

std::vector<std::string> FieldReader::strings(const char* field) {
  napi_value value = nullptr;
  if (!read(field, &value)) return {};
  bool isArray = false;
  uint32_t length = 0;
  if (napi_is_array(env_, value, &isArray) != napi_ok || !isArray ||
      napi_get_array_length(env_, value, &length) != napi_ok || length > kMaxFiles) {
    fail(field, "an array of at most 65536 strings");
    return {};
  }
  std::vector<std::string> texts;
  for (uint32_t i = 0; i < length; ++i) {
    napi_value element = nullptr;
    if (napi_get_element(env_, value, i, &element) != napi_ok) {
      fail(field, "readable");
      return {};
    }
    Expected<std::string> text =
        readString(env_, element, name_ + "." + field + "[" + std::to_string(i) + "]");
    if (!text) {
      status_ = text.status();
      return {};
    }
    texts.push_back(*std::move(text));
  }
  return texts;
}

std::vector<int32_t> FieldReader::int32Array(const char* field) {
  napi_value value = nullptr;
  if (!read(field, &value)) return {};
  Expected<std::vector<int32_t>> array = readInt32Array(env_, value, name_ + "." + field);
  if (array) return *std::move(array);
  status_ = array.status();
  return {};
}

std::vector<float> FieldReader::float32Array(const char* field) {
  napi_value value = nullptr;
  if (!read(field, &value)) return {};
  Expected<std::vector<float>> array = readFloat32Array(env_, value, name_ + "." + field);
  if (array) return *std::move(array);
  status_ = array.status();
  return {};
}

bool FieldReader::has(const char* field) {
  napi_value value = nullptr;
  return read(field, &value) && !isType(env_, value, napi_undefined);
}

std::vector<char> FieldReader::bytes(const char* field) {
  napi_value value = nullptr;
  bool isBuffer = false;
  void* data = nullptr;
  size_t length = 0;
  if (!read(field, &value)) return {};
  if (napi_is_buffer(env_, value, &isBuffer) != napi_ok || !isBuffer ||
      napi_get_buffer_info(env_, value, &data, &length) != napi_ok) {
    fail(field, "a Buffer");
    return {};
  }
  const auto* first = static_cast<const char*>(data);
  return length == 0 ? std::vector<char>{} : std::vector<char>(first, first + length);
}

FieldReader FieldReader::object(const char* field) {
  napi_value value = nullptr;
  if (read(field, &value)) return {env_, value, name_ + "." + field};
  FieldReader failed = *this;
  return failed;
}

Expected<std::string> readString(napi_env env, napi_value value, const std::string& name) {
  size_t length = 0;
  if (!isType(env, value, napi_string) ||
      napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok) {
    return mustBe(name, "a string");
  }
  std::string text(length + 1, '\0');
  if (napi_get_value_string_utf8(env, value, text.data(), text.size(), &length) != napi_ok) {
    return mustBe(name, "a string");
  }
  text.resize(length);
  // A NUL would end a path early in the system's calls, and none of our strings may hold one.
  if (text.find('\0') != std::string::npos) return mustBe(name, "a string without NUL characters");
  return text;
}

Expected<std::vector<int32_t>> readInt32Array(napi_env env, napi_value value, const std::string& name) {
  return readTypedArray<int32_t>(env, value, name, napi_int32_array, "an Int32Array");
}

Expected<std::vector<float>> readFloat32Array(napi_env env, napi_value value, const std::string& name) {
  return readTypedArray<float>(env, value, name, napi_float32_array, "a Float32Array");
}

Expected<int32_t> readInt32(napi_env env, napi_value value, const std::string& name) {
  double number = 0;
  if (!isType(env, value, napi_number) || napi_get_value_double(env, value, &number) != napi_ok ||
      !isInt32(number)) {
    return mustBe(name, "a 32-bit integer");
  }
  return static_cast<int32_t>(number);
}

Expected<SlotInit> readSlotInit(napi_env env, napi_value value) {
  SlotInit init;
  FieldReader fields(env, value, "init");
  init.slot = fields.int32("slot");
  init.prompt = fields.int32Array("prompt");
  init.output = fields.int32Array("output");

  FieldReader sampling = fields.object("sampling");
  init.sampling.temperature = sampling.float32("temperature");
  init.sampling.topK = sampling.int32("topK");
  init.sampling.topP = sampling.float32("topP");
  init.sampling.minP = sampling.float32("minP");
  init.sampling.repetitionPenalty = sampling.float32("repetitionPenalty");
  init.sampling.presencePenalty = sampling.float32("presencePenalty");
  init.sampling.frequencyPenalty = sampling.float32("frequencyPenalty");
  init.sampling.seed = sampling.uint53("seed");
  init.sampling.logprobs = sampling.int32("logprobs");
  init.sampling.promptLogprobs = sampling.int32("promptLogprobs");
  init.sampling.minTokens = sampling.int32("minTokens");
  init.sampling.bannedTokens = sampling.int32Array("bannedTokens");
  if (sampling.has("logitBias")) {
    FieldReader bias = sampling.object("logitBias");
    init.sampling.biasIds = bias.int32Array("ids");
    init.sampling.biasValues = bias.float32Array("values");
    sampling.join(bias);
  }
  fields.join(sampling);

  if (!fields.status()) return fields.status();
  return init;
}

Expected<CpuOptions> readCpuOptions(napi_env env, napi_value value) {
  CpuOptions options;
  FieldReader fields(env, value, "options");
  options.graph = fields.string("graph");
  options.files = fields.strings("files");
  options.pageSize = fields.int32("pageSize");
  options.numPages = fields.int32("numPages");
  options.maxSlots = fields.int32("maxSlots");
  options.maxStepTokens = fields.int32("maxStepTokens");
  options.threads = fields.int32("threads");
  options.simd = fields.string("simd");
  if (!fields.status()) return fields.status();
  return options;
}

}  // namespace nt::napi
