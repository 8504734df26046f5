// JSON as text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/text.h"

namespace nt::runtime {

// Writes the commas.
class JsonWriter {
 public:
  JsonWriter& key(std::string_view name) {
    separate();
    appendJsonString(text_, name);
    text_ += ':';
    fresh_ = true;
    return *this;
  }
  void open(char bracket) {
    separate();
    text_ += bracket;
    fresh_ = true;
  }
  void close(char bracket) {
    text_ += bracket;
    fresh_ = false;
  }
  void value(std::string_view text) {
    separate();
    appendJsonString(text_, text);
  }
  void value(const std::string& text) { value(std::string_view(text)); }
  void value(const char* text) { value(std::string_view(text)); }
  void value(int64_t number) {
    separate();
    text_ += std::to_string(number);
  }
  void value(int32_t number) { value(static_cast<int64_t>(number)); }
  void value(bool flag) {
    separate();
    text_ += flag ? "true" : "false";
  }
  void null() {
    separate();
    text_ += "null";
  }
  template <class T>
  void value(const std::vector<T>& items) {
    open('[');
    for (const T& item : items) value(item);
    close(']');
  }
  std::string take() { return std::move(text_); }

 private:
  void separate() {
    if (!fresh_) text_ += ',';
    fresh_ = false;
  }

  std::string text_;
  bool fresh_ = true;
};

}  // namespace nt::runtime
