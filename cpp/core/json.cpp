#include "core/json.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <new>

#include "core/text.h"

namespace nt {

namespace {

bool isDigit(unsigned char c) noexcept {
  return c >= '0' && c <= '9';
}

int hexDigit(unsigned char c) noexcept {
  if (isDigit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

JsonKind JsonValue::kind() const noexcept {
  return document_->nodes_[index_].kind;
}

std::optional<std::string_view> JsonValue::string() const noexcept {
  const JsonDocument::Node& node = document_->nodes_[index_];
  if (node.kind != JsonKind::kString) return std::nullopt;
  return document_->content(node);
}

std::optional<int64_t> JsonValue::integer() const noexcept {
  const JsonDocument::Node& node = document_->nodes_[index_];
  if (node.kind != JsonKind::kNumber) return std::nullopt;
  const std::string_view literal = document_->content(node);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(literal.data(), literal.data() + literal.size(), value);
  if (error != std::errc() || end != literal.data() + literal.size()) return std::nullopt;
  return value;
}

std::optional<double> JsonValue::number() const noexcept {
  const JsonDocument::Node& node = document_->nodes_[index_];
  if (node.kind != JsonKind::kNumber) return std::nullopt;
  const std::string_view literal = document_->content(node);
  double value = 0;
  const auto [end, error] = std::from_chars(literal.data(), literal.data() + literal.size(), value);
  if (error != std::errc() || end != literal.data() + literal.size()) return std::nullopt;
  return value;
}

size_t JsonValue::size() const noexcept {
  const JsonDocument::Node& node = document_->nodes_[index_];
  return node.kind == JsonKind::kArray || node.kind == JsonKind::kObject ? node.length : 0;
}

JsonValue::Range<false> JsonValue::elements() const noexcept {
  return {document_, index_ + 1, isArray() ? document_->nodes_[index_].next : index_ + 1};
}

JsonValue::Range<true> JsonValue::members() const noexcept {
  return {document_, index_ + 1, isObject() ? document_->nodes_[index_].next : index_ + 1};
}

std::optional<JsonValue> JsonValue::find(std::string_view key) const noexcept {
  for (const auto& [name, value] : members()) {
    if (name == key) return value;
  }
  return std::nullopt;
}

// Recursive descent; the recursion is bounded by kJsonMaxDepth. Each method returns false after `fail`.
class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) { document_.text_ = text; }

  Expected<JsonDocument> parse() {
    if (text_.size() > std::numeric_limits<uint32_t>::max()) return Status::invalid("text longer than 4 GiB");
    if (!parseValue(0)) return std::move(error_);
    skipSpace();
    if (position_ != text_.size()) {
      fail("unexpected text after the value");
      return std::move(error_);
    }
    return std::move(document_);
  }

 private:
  using Node = JsonDocument::Node;

  bool fail(const char* what) { return failAt(position_, what); }
  bool failAt(size_t position, const std::string& what) {
    error_ = Status::invalid(what + " at byte " + std::to_string(position));
    return false;
  }

  // 0 at the end of the text, which no rule below accepts.
  unsigned char peek(size_t ahead = 0) const noexcept {
    return position_ + ahead < text_.size() ? static_cast<unsigned char>(text_[position_ + ahead]) : 0;
  }

  void skipSpace() noexcept {
    while (position_ < text_.size()) {
      const char c = text_[position_];
      if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
      ++position_;
    }
  }

  uint32_t add(JsonKind kind, size_t offset, size_t length, bool decoded = false) {
    const auto index = static_cast<uint32_t>(document_.nodes_.size());
    document_.nodes_.push_back(
        {static_cast<uint32_t>(offset), static_cast<uint32_t>(length), index + 1, kind, decoded});
    return index;
  }

  bool parseValue(int depth) {
    skipSpace();
    switch (peek()) {
      case '{':
        return parseObject(depth);
      case '[':
        return parseArray(depth);
      case '"':
        return parseString();
      case 't':
        return parseWord("true", JsonKind::kTrue);
      case 'f':
        return parseWord("false", JsonKind::kFalse);
      case 'n':
        return parseWord("null", JsonKind::kNull);
      default:
        if (peek() == '-' || isDigit(peek())) return parseNumber();
        return fail(position_ == text_.size() ? "unexpected end of the text" : "expected a value");
    }
  }

  bool parseWord(std::string_view word, JsonKind kind) {
    if (text_.substr(position_, word.size()) != word) return fail("expected a value");
    add(kind, position_, word.size());
    position_ += word.size();
    return true;
  }

  bool parseNumber() {
    const size_t start = position_;
    if (peek() == '-') ++position_;
    if (!isDigit(peek())) return fail("expected a digit");
    if (peek() == '0') {
      ++position_;
      if (isDigit(peek())) return fail("a number with a leading zero");
    } else {
      while (isDigit(peek())) ++position_;
    }
    if (peek() == '.') {
      ++position_;
      if (!isDigit(peek())) return fail("expected a digit");
      while (isDigit(peek())) ++position_;
    }
    if (peek() == 'e' || peek() == 'E') {
      ++position_;
      if (peek() == '+' || peek() == '-') ++position_;
      if (!isDigit(peek())) return fail("expected a digit");
      while (isDigit(peek())) ++position_;
    }
    add(JsonKind::kNumber, start, position_ - start);
    return true;
  }

  bool parseString() {
    const size_t quote = position_++;
    size_t run = position_;  // start of the bytes not yet decoded
    const size_t decodedAt = document_.decoded_.size();
    bool escaped = false;
    while (position_ < text_.size()) {
      const auto c = static_cast<unsigned char>(text_[position_]);
      if (c == '"') {
        if (escaped) {
          document_.decoded_.append(text_.substr(run, position_ - run));
          add(JsonKind::kString, decodedAt, document_.decoded_.size() - decodedAt, true);
        } else {
          add(JsonKind::kString, run, position_ - run);
        }
        ++position_;
        return true;
      }
      if (c == '\\') {
        escaped = true;
        document_.decoded_.append(text_.substr(run, position_ - run));
        if (!parseEscape()) return false;
        run = position_;
      } else if (c < 0x20) {
        return fail("a control character in a string");
      } else if (c < 0x80) {
        ++position_;
      } else {
        const size_t length = utf8SequenceLength(text_.substr(position_));
        if (length == 0) return fail("invalid UTF-8");
        position_ += length;
      }
    }
    return failAt(quote, "a string without an end");
  }

  bool parseEscape() {
    ++position_;
    const unsigned char c = peek();
    if (c == 'u') return parseUnicodeEscape();
    static constexpr std::string_view kLetters = "\"\\/bfnrt";
    static constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    const size_t which = kLetters.find(static_cast<char>(c));
    if (which == std::string_view::npos) return fail("an unknown escape");
    document_.decoded_.push_back(kMeanings[which]);
    ++position_;
    return true;
  }

  // Four digits after the `u` that the position is at; leaves it after them. -1 where they are none.
  int32_t parseHex4() noexcept {
    int32_t value = 0;
    for (size_t i = 1; i <= 4; ++i) {
      const int digit = hexDigit(peek(i));
      if (digit < 0) return -1;
      value = value * 16 + digit;
    }
    position_ += 5;
    return value;
  }

  bool parseUnicodeEscape() {
    int32_t code = parseHex4();
    if (code < 0) return fail("expected four hexadecimal digits");
    if (code >= 0xD800 && code < 0xE000) {
      int32_t low = -1;
      if (code < 0xDC00 && peek() == '\\' && peek(1) == 'u') {
        ++position_;
        low = parseHex4();
      }
      if (low < 0xDC00 || low > 0xDFFF) return fail("a lone surrogate");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    appendUtf8(document_.decoded_, static_cast<uint32_t>(code));
    return true;
  }

  bool parseArray(int depth) {
    if (depth >= kJsonMaxDepth) return fail("nested too deeply");
    const uint32_t self = add(JsonKind::kArray, position_, 0);
    ++position_;
    uint32_t count = 0;
    skipSpace();
    if (peek() != ']') {
      for (;;) {
        if (!parseValue(depth + 1)) return false;
        ++count;
        skipSpace();
        if (peek() == ']') break;
        if (peek() != ',') return fail("expected ',' or ']'");
        ++position_;
      }
    }
    ++position_;
    close(self, count);
    return true;
  }

  bool parseObject(int depth) {
    if (depth >= kJsonMaxDepth) return fail("nested too deeply");
    const size_t start = position_;
    const uint32_t self = add(JsonKind::kObject, position_, 0);
    ++position_;
    uint32_t count = 0;
    skipSpace();
    if (peek() != '}') {
      for (;;) {
        skipSpace();
        if (peek() != '"') return fail("expected a key in quotes");
        if (!parseString()) return false;
        skipSpace();
        if (peek() != ':') return fail("expected ':'");
        ++position_;
        if (!parseValue(depth + 1)) return false;
        ++count;
        skipSpace();
        if (peek() == '}') break;
        if (peek() != ',') return fail("expected ',' or '}'");
        ++position_;
      }
    }
    ++position_;
    close(self, count);
    return checkKeys(self, start);
  }

  void close(uint32_t container, uint32_t count) noexcept {
    document_.nodes_[container].length = count;
    document_.nodes_[container].next = static_cast<uint32_t>(document_.nodes_.size());
  }

  bool checkKeys(uint32_t object, size_t start) {
    keys_.clear();
    for (const auto& member : JsonValue(&document_, object).members()) keys_.push_back(member.first);
    std::sort(keys_.begin(), keys_.end());
    const auto twice = std::adjacent_find(keys_.begin(), keys_.end());
    if (twice == keys_.end()) return true;
    return failAt(start, "the key " + quoted(*twice) + " twice in the object");
  }

  std::string_view text_;
  size_t position_ = 0;
  JsonDocument document_;
  std::vector<std::string_view> keys_;  // scratch of checkKeys
  Status error_;
};

Expected<JsonDocument> parseJson(std::string_view text) noexcept {
  try {
    return JsonParser(text).parse();
  } catch (const std::bad_alloc&) {
    return Status("ERR_OUT_OF_MEMORY", "not enough memory to read JSON");
  }
}

}  // namespace nt
