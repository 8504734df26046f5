#include <string>
#include <vector>

#include "check.h"
#include "core/json.h"
#include "core/text.h"
#include "mutate.h"

namespace nt {
namespace {

bool accepts(std::string_view text) {
  return static_cast<bool>(parseJson(text));
}

std::string errorOf(std::string_view text) {
  const auto document = parseJson(text);
  return document ? "(accepted)" : document.status().message();
}

TEST(readsScalars) {
  const std::string text =
      R"( [null, true, false, "a", 1, -0, 1.5e3, 9223372036854775807, 9223372036854775808] )";
  const auto document = parseJson(text);
  REQUIRE(document);
  std::vector<JsonValue> values;
  for (const JsonValue value : document->root().elements()) values.push_back(value);
  REQUIRE(values.size() == 9);
  CHECK_EQ(document->root().size(), size_t{9});
  CHECK(values[0].isNull());
  CHECK_EQ(values[1].kind(), JsonKind::kTrue);
  CHECK_EQ(values[2].kind(), JsonKind::kFalse);
  CHECK(values[3].string() == "a");
  CHECK(values[4].integer() == 1);
  CHECK(values[5].integer() == 0);
  CHECK(!values[6].integer());
  CHECK(values[6].number() == 1500.0);
  CHECK(values[7].integer() == INT64_MAX);
  CHECK(!values[8].integer());
  CHECK(values[8].number() == 9223372036854775808.0);
  CHECK(!values[0].string() && !values[0].integer() && !values[3].number());
  CHECK(values[0].find("x") == std::nullopt);
}

TEST(integersAreExactToTheLast) {
  for (const int64_t value : {int64_t{1} << 53, (int64_t{1} << 53) + 1, INT64_MIN, INT64_MAX, int64_t{-1}}) {
    const std::string text = std::to_string(value);
    const auto document = parseJson(text);
    REQUIRE(document);
    CHECK(document->root().integer() == value);
  }
  for (const char* text : {"1.0", "1e2", "9223372036854775808", "-9223372036854775809"}) {
    const auto document = parseJson(text);
    REQUIRE(document);
    CHECK(!document->root().integer());
    CHECK(document->root().number());
  }
  for (const char* text : {"1e999", "-1e999"}) {
    const auto document = parseJson(text);
    REQUIRE(document);
    CHECK(!document->root().number());
  }
}

TEST(findsMembersInNestedObjects) {
  const std::string text = R"({"a":{"x":[1,{"deep":true}],"y":2},"b":[],"c":{},"d":3})";
  const auto document = parseJson(text);
  REQUIRE(document);
  const JsonValue root = document->root();
  std::string keys;
  for (const auto& [key, value] : root.members()) keys += key;
  CHECK_EQ(keys, "abcd");
  CHECK(root.find("d")->integer() == 3);
  CHECK(root.find("a")->find("y")->integer() == 2);
  CHECK_EQ(root.find("b")->size(), size_t{0});
  CHECK(!root.find("deep"));
  // Iterating a value of another kind gives nothing.
  for (const JsonValue value : root.elements()) CHECK(value.isNull());
  for (const auto& member : root.find("b")->members()) CHECK(member.first == "never");
}

TEST(decodesEscapes) {
  const std::string text =
      R"(["\"\\\/\b\f\n\r\t", "\u0041\u00e9\u20AC\ud83d\ude00", "a\u0000b", "plain", "\u0041"])";
  const auto document = parseJson(text);
  REQUIRE(document);
  std::vector<std::string> values;
  for (const JsonValue value : document->root().elements()) values.emplace_back(*value.string());
  REQUIRE(values.size() == 5);
  CHECK_EQ(values[0], "\"\\/\b\f\n\r\t");
  CHECK_EQ(values[1], "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK_EQ(values[2], std::string("a\0b", 3));
  CHECK_EQ(values[3], "plain");
  CHECK_EQ(values[4], "A");
}

TEST(survivesAMove) {
  const std::string text = R"({"a\u0062":"c\u0064"})";
  auto first = parseJson(text);
  REQUIRE(first);
  const JsonDocument moved = *std::move(first);
  const auto value = moved.root().find("ab");
  REQUIRE(value);
  CHECK(value->string() == "cd");
}

TEST(rejectsWhatIsNoJson) {
  for (const char* text :
       {"",          " ",           "{",        "}",      "[1,]",   "{\"a\":1,}", "{a:1}",    "{'a':1}",
        "[1 2]",     "01",          "-",        "+1",     "1.",     ".5",         "1e",       "1e+",
        "0x10",      "NaN",         "Infinity", "nul",    "truex",  "[1]]",       "\"",       "\"\\x\"",
        "\"\\u12\"", "\"\\u12g4\"", "// c\n1",  "\"\t\"", "\"\n\"", "{\"a\"}",    "{\"a\":}", "{1:2}",
        "[,1]",      "1 2",         "--1",      "-01"}) {
    if (accepts(text)) nt::test::fail(__FILE__, __LINE__, std::string("accepted: ") + text);
  }
  CHECK(!accepts(std::string_view("1\0", 2)));
  CHECK(!accepts(std::string_view("\0", 1)));
  CHECK(!accepts("\xEF\xBB\xBF{}"));
}

TEST(rejectsBadUnicode) {
  CHECK(accepts("\"\xF4\x8F\xBF\xBF\xED\x9F\xBF\xE0\xA0\x80\""));
  for (const char* text : {"\"\x80\"", "\"\xC0\x80\"", "\"\xC1\xBF\"", "\"\xE0\x9F\xBF\"", "\"\xED\xA0\x80\"",
                           "\"\xF0\x8F\xBF\xBF\"", "\"\xF4\x90\x80\x80\"", "\"\xF5\x80\x80\x80\"", "\"\xFF\"",
                           "\"\xC3\"", "\"\xE2\x82\"", "\"\xC3(\""}) {
    CHECK(!accepts(text));
  }
  for (const char* text :
       {R"("\ud800")", R"("\udc00")", R"("\ud800\u0041")", R"("\ud800\ud800")", R"("\ud800x")"}) {
    CHECK(!accepts(text));
  }
}

TEST(namesTheByte) {
  CHECK_CONTAINS(errorOf("[1, x]"), "at byte 4");
  CHECK_CONTAINS(errorOf("{\"a\" 1}"), "expected ':' at byte 5");
  CHECK_CONTAINS(errorOf("[1"), "at byte 2");
  CHECK_CONTAINS(errorOf("1 1"), "after the value at byte 2");
}

TEST(rejectsDuplicateKeys) {
  CHECK_CONTAINS(errorOf(R"([{"a":1,"b":2,"a":3}])"), "'a' twice in the object at byte 1");
  CHECK(!accepts(R"({"a":1,"\u0061":2})"));
  CHECK(accepts(R"({"a":{"a":1},"b":{"a":1}})"));
  std::string many = "{";
  for (int i = 0; i < 1000; ++i) many += "\"k" + std::to_string(i) + "\":0,";
  CHECK(accepts(many + "\"k1000\":0}"));
  CHECK(!accepts(many + "\"k500\":0}"));
}

TEST(limitsTheDepth) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(accepts(nested(64)));
  CHECK(!accepts(nested(65)));
  CHECK(!accepts(std::string(1'000'000, '[')));
  std::string objects;
  for (int i = 0; i < 65; ++i) objects += "{\"a\":";
  CHECK_CONTAINS(errorOf(objects), "nested too deeply");
}

TEST(quotesForMessages) {
  CHECK_EQ(quoted("a\nb\x7F\xFF\xC3\xA9"), "'a?b??\xC3\xA9'");
  CHECK_EQ(quoted(std::string(200, 'x'), 10), "'xxxxxxxxx...'");
  CHECK_EQ(quoted("xxxxxxxx\xC3\xA9", 10), "'xxxxxxxx...'");
}

TEST(measuresEditDistance) {
  CHECK_EQ(editDistance("kitten", "sitting", 9), size_t{3});
  CHECK_EQ(editDistance("", "abc", 9), size_t{3});
  CHECK_EQ(editDistance("abc", "abc", 0), size_t{0});
  CHECK_EQ(editDistance("kitten", "sitting", 2), size_t{3});
  CHECK_EQ(editDistance("a", "abcdefgh", 2), size_t{3});
}

TEST(survivesDamage) {
  const std::string valid =
      R"({"model.embed.weight":{"dtype":"F32","shape":[16,8],"data_offsets":[0,512]},"e":"\u00e9\n","n":[1.5e-3,-2,null]})";
  CHECK(accepts(valid));
  nt::test::Mutator mutator(1);
  int accepted = 0;
  size_t seen = 0;
  for (int i = 0; i < 100'000; ++i) {
    const std::string text = mutator.mutate(valid);
    const auto document = parseJson(text);
    if (!document) {
      CHECK_EQ(document.status().code(), "ERR_INVALID_ARGUMENT");
      continue;
    }
    ++accepted;
    for (const auto& [key, value] : document->root().members()) {
      seen += key.size() + value.size() + (value.string() ? value.string()->size() : 0);
    }
  }
  CHECK(seen > 0);
  CHECK(accepted > 1000 && accepted < 99'000);
}

TEST(whatIsWrittenIsReadBack) {
  const auto written = [](std::string_view text) {
    std::string json;
    appendJsonString(json, text);
    return json;
  };
  CHECK_EQ(written("a\"b\\c\n\x01\x7f/"), std::string("\"a\\\"b\\\\c\\u000a\\u0001\x7f/\""));
  // Bytes that are no UTF-8, one replacement each.
  CHECK_EQ(written("\xff\xc3z"), std::string("\"\xef\xbf\xbd\xef\xbf\xbdz\""));
  std::string all;
  for (uint32_t point = 0; point < 0x11000; point += point < 0x300 ? 1 : 37) {
    if (point < 0xD800 || point > 0xDFFF) appendUtf8(all, point);
  }
  const std::string json = written(all);
  const auto document = parseJson(json);
  REQUIRE(document);
  CHECK(document->root().string() == all);
}

}  // namespace
}  // namespace nt

TEST_MAIN()
