// Small helpers for text that comes from outside: UTF-8, quoting for messages and JSON, near names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nt {

// Bytes of the well-formed UTF-8 sequence (1 ... 4) that the text starts with; 0 where it starts with none
// (overlong forms, surrogates and code points above U+10FFFF are not well-formed).
size_t utf8SequenceLength(std::string_view text) noexcept;

// Appends a code point that is no surrogate and at most U+10FFFF.
void appendUtf8(std::string& to, uint32_t codePoint);

// The text in single quotes for a message: control characters and invalid UTF-8 as '?', cut after `limit`
// bytes.
std::string quoted(std::string_view text, size_t limit = 120);

// Appends the text as a JSON string; invalid UTF-8 becomes U+FFFD.
void appendJsonString(std::string& to, std::string_view text);

// "[32000, 288]"
std::string shapeText(std::span<const int64_t> shape);

// Levenshtein distance in bytes, or `limit` + 1 where it is more than `limit`.
size_t editDistance(std::string_view a, std::string_view b, size_t limit);

// Up to `count` of the candidates that resemble `name`, the most similar first.
std::vector<std::string_view> nearestNames(std::string_view name,
                                           std::span<const std::string_view> candidates, size_t count = 3);

}  // namespace nt
