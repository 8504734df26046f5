// A strict JSON reader (RFC 8259) for what comes from outside: graphs and safetensors headers.
//
// A document is one flat array of 16-byte nodes in text order; strings without escapes are views into the
// text. Stricter than the RFC where it leaves a choice: duplicate keys, lone surrogates, a byte order mark
// and invalid UTF-8 are errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/status.h"

namespace nt {

// Arrays and objects inside one another.
inline constexpr int kJsonMaxDepth = 64;

enum class JsonKind : uint8_t { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };

class JsonDocument;

// A handle to one value of a document; valid as long as the document stays where it is and its text lives.
class JsonValue {
 public:
  using Member = std::pair<std::string_view, JsonValue>;

  template <bool kMembers>
  class Range;

  JsonValue(const JsonDocument* document, uint32_t index) noexcept : document_(document), index_(index) {}

  JsonKind kind() const noexcept;
  bool isNull() const noexcept { return kind() == JsonKind::kNull; }
  bool isArray() const noexcept { return kind() == JsonKind::kArray; }
  bool isObject() const noexcept { return kind() == JsonKind::kObject; }

  // Each accessor of a scalar gives nothing where the value is of another kind.
  std::optional<std::string_view> string() const noexcept;
  // A literal without fraction and exponent that fits; exact.
  std::optional<int64_t> integer() const noexcept;
  // The nearest double; nothing for literals outside its range (1e999, 1e-999).
  std::optional<double> number() const noexcept;

  // Elements of an array or members of an object; 0 for scalars.
  size_t size() const noexcept;
  // Empty for values of another kind.
  Range<false> elements() const noexcept;
  Range<true> members() const noexcept;
  // The member of an object, by a linear search.
  std::optional<JsonValue> find(std::string_view key) const noexcept;

 private:
  const JsonDocument* document_;
  uint32_t index_;
};

class JsonDocument {
 public:
  JsonValue root() const noexcept { return {this, 0}; }

 private:
  friend class JsonValue;
  friend class JsonParser;

  struct Node {
    uint32_t offset = 0;  // of the content, in the text or (decoded) in `decoded_`
    uint32_t length = 0;  // bytes of a scalar, children of a container
    uint32_t next = 0;    // index of the first node after this value
    JsonKind kind = JsonKind::kNull;
    bool decoded = false;
  };

  std::string_view content(const Node& node) const noexcept {
    return (node.decoded ? std::string_view(decoded_) : text_).substr(node.offset, node.length);
  }

  std::string_view text_;
  std::string decoded_;  // strings that had escapes
  std::vector<Node> nodes_;
};

// The children of a container. An object's are key node, value node, key node, ...
template <bool kMembers>
class JsonValue::Range {
 public:
  class Iterator {
   public:
    Iterator(const JsonDocument* document, uint32_t index) noexcept : document_(document), index_(index) {}
    auto operator*() const noexcept {
      if constexpr (kMembers) {
        return Member{*JsonValue(document_, index_).string(), JsonValue(document_, index_ + 1)};
      } else {
        return JsonValue(document_, index_);
      }
    }
    Iterator& operator++() noexcept {
      index_ = document_->nodes_[kMembers ? index_ + 1 : index_].next;
      return *this;
    }
    bool operator==(const Iterator& other) const noexcept { return index_ == other.index_; }

   private:
    const JsonDocument* document_;
    uint32_t index_;
  };

  Range(const JsonDocument* document, uint32_t begin, uint32_t end) noexcept
      : document_(document), begin_(begin), end_(end) {}
  Iterator begin() const noexcept { return {document_, begin_}; }
  Iterator end() const noexcept { return {document_, end_}; }

 private:
  const JsonDocument* document_;
  uint32_t begin_;
  uint32_t end_;
};

// `text` must outlive the document and may hold at most 2^32 - 1 bytes. ERR_INVALID_ARGUMENT says what is
// wrong and at which byte; ERR_OUT_OF_MEMORY.
Expected<JsonDocument> parseJson(std::string_view text) noexcept;

}  // namespace nt
