// Errors as values. Nothing in cpp/ throws across a room's boundary: napi turns a Status into a JavaScript
// error.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace nt {

// `code` is one of the strings of lib/errors.ts; an empty code means success.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(std::string code, std::string message, std::string hint = {})
      : code_(std::move(code)), message_(std::move(message)), hint_(std::move(hint)) {}

  static Status ok() { return {}; }
  static Status invalid(std::string message, std::string hint = {}) {
    return {"ERR_INVALID_ARGUMENT", std::move(message), std::move(hint)};
  }

  bool isOk() const noexcept { return code_.empty(); }
  explicit operator bool() const noexcept { return isOk(); }
  const std::string& code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  std::string code_;
  std::string message_;
  std::string hint_;
};

// A value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Expected {
 public:
  Expected(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit on purpose
  Expected(Status status) : state_(std::in_place_index<1>, std::move(status)) {}  // NOLINT

  explicit operator bool() const noexcept { return state_.index() == 0; }
  T& operator*() & { return std::get<0>(state_); }
  const T& operator*() const& { return std::get<0>(state_); }
  T&& operator*() && { return std::get<0>(std::move(state_)); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }
  Status status() const { return state_.index() == 1 ? std::get<1>(state_) : Status::ok(); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace nt
