#include "core/text.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace nt {

size_t utf8SequenceLength(std::string_view text) noexcept {
  const auto byte = [&](size_t i) -> uint32_t {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
  if (text.empty()) return 0;
  const uint32_t first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2) return 0;
  if (!continues(1)) return 0;
  if (first < 0xE0) return 2;
  if (!continues(2)) return 0;
  if (first < 0xF0) {
    const bool overlong = first == 0xE0 && byte(1) < 0xA0;
    const bool surrogate = first == 0xED && byte(1) >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  if (first > 0xF4 || !continues(3)) return 0;
  const bool overlong = first == 0xF0 && byte(1) < 0x90;
  const bool tooLarge = first == 0xF4 && byte(1) >= 0x90;
  return overlong || tooLarge ? 0 : 4;
}

void appendUtf8(std::string& to, uint32_t codePoint) {
  const auto push = [&](uint32_t byte) { to.push_back(static_cast<char>(byte)); };
  if (codePoint < 0x80) {
    push(codePoint);
  } else if (codePoint < 0x800) {
    push(0xC0U | (codePoint >> 6));
    push(0x80U | (codePoint & 0x3FU));
  } else if (codePoint < 0x10000) {
    push(0xE0U | (codePoint >> 12));
    push(0x80U | ((codePoint >> 6) & 0x3FU));
    push(0x80U | (codePoint & 0x3FU));
  } else {
    push(0xF0U | (codePoint >> 18));
    push(0x80U | ((codePoint >> 12) & 0x3FU));
    push(0x80U | ((codePoint >> 6) & 0x3FU));
    push(0x80U | (codePoint & 0x3FU));
  }
}

std::string quoted(std::string_view text, size_t limit) {
  std::string result = "'";
  while (!text.empty()) {
    size_t length = utf8SequenceLength(text);
    const bool plain =
        length > 1 || (length == 1 && static_cast<unsigned char>(text[0]) >= 0x20 && text[0] != 0x7F);
    length = std::max<size_t>(length, 1);
    if (result.size() + length > limit) {
      result += "...";
      break;
    }
    if (plain) {
      result += text.substr(0, length);
    } else {
      result += '?';
    }
    text.remove_prefix(length);
  }
  return result + "'";
}

void appendJsonString(std::string& to, std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  to += '"';
  while (!text.empty()) {
    const size_t length = utf8SequenceLength(text);
    const auto first = static_cast<unsigned char>(text.front());
    if (length == 0) {
      appendUtf8(to, 0xFFFD);
    } else if (first == '"' || first == '\\') {
      to += '\\';
      to += text.front();
    } else if (first < 0x20) {
      to += "\\u00";
      to += kHex[first >> 4];
      to += kHex[first & 15];
    } else {
      to += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  to += '"';
}

std::string shapeText(std::span<const int64_t> shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) result += ", ";
    result += std::to_string(shape[i]);
  }
  return result + "]";
}

size_t editDistance(std::string_view a, std::string_view b, size_t limit) {
  if (a.size() > b.size()) std::swap(a, b);
  if (b.size() - a.size() > limit) return limit + 1;
  std::vector<size_t> row(a.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t j = 1; j <= b.size(); ++j) {
    size_t diagonal = row[0];
    row[0] = j;
    size_t smallest = j;
    for (size_t i = 1; i <= a.size(); ++i) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[i];
      row[i] = std::min({replaced, row[i] + 1, row[i - 1] + 1});
      smallest = std::min(smallest, row[i]);
    }
    if (smallest > limit) return limit + 1;
  }
  return std::min(row[a.size()], limit + 1);
}

std::vector<std::string_view> nearestNames(std::string_view name,
                                           std::span<const std::string_view> candidates, size_t count) {
  // Beyond these a hint is worth less than the time it takes: a hostile file may name a million tensors at
  // length.
  constexpr size_t kLongestName = 256;
  constexpr size_t kMostCandidates = 50'000;
  if (name.size() > kLongestName) return {};
  // Half of the name, so that a prefix too many or too few ("model.") still resembles.
  const size_t limit = std::max<size_t>(2, name.size() / 2);
  std::vector<std::pair<size_t, std::string_view>> near;
  for (const std::string_view candidate : candidates.first(std::min(candidates.size(), kMostCandidates))) {
    if (candidate.size() > kLongestName) continue;
    const size_t distance = editDistance(name, candidate, limit);
    if (distance <= limit) near.emplace_back(distance, candidate);
  }
  std::sort(near.begin(), near.end());
  std::vector<std::string_view> result;
  for (size_t i = 0; i < near.size() && i < count; ++i) result.push_back(near[i].second);
  return result;
}

}  // namespace nt
