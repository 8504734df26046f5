// A test runner in one header, so that the native tests need nothing that a fresh clone doesn't have.
//
//   TEST(name) { CHECK(condition); CHECK_EQ(actual, expected); }
//
// A failed check is printed and counted, and the test goes on. The executable prints one line per test in
// TAP's form and exits with 1 if any test failed. With an argument it runs only the tests whose names contain
// it.
#pragma once

#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace nt::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

template <typename T>
std::string show(const T& value) {
  if constexpr (requires(std::ostream& out) { out << value; }) {
    std::ostringstream out;
    out.precision(17);
    out << value;
    return out.str();
  } else if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<std::underlying_type_t<T>>(value));
  } else {
    return "(a value)";
  }
}

inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::cout << "# " << file << ":" << line << ": " << what << "\n";
}

template <typename A, typename B>
void checkEqual(const A& actual, const B& expected, const char* text, const char* file, int line) {
  if (actual == expected) return;
  fail(file, line, std::string(text) + " is " + show(actual) + ", expected " + show(expected));
}

inline void checkContains(std::string_view text, std::string_view part, const char* file, int line) {
  if (text.find(part) != std::string_view::npos) return;
  fail(file, line, "expected '" + std::string(part) + "' in '" + std::string(text) + "'");
}

inline int runAll(std::string_view filter) {
  int ran = 0;
  int failed = 0;
  for (const Case& test : cases()) {
    if (std::string_view(test.name).find(filter) == std::string_view::npos) continue;
    const int before = failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(test.name, 0, std::string("threw ") + error.what());
    }
    const bool ok = failures() == before;
    if (!ok) ++failed;
    std::cout << (ok ? "ok " : "not ok ") << ++ran << " " << test.name << std::endl;
  }
  std::cout << "1.." << ran << std::endl;
  return failed == 0 && ran > 0 ? 0 : 1;
}

}  // namespace nt::test

#define TEST(name)                                                      \
  static void name();                                                   \
  static const nt::test::Registration name##Registration(#name, &name); \
  static void name()
#define CHECK(condition)                                                         \
  do {                                                                           \
    if (!(condition)) nt::test::fail(__FILE__, __LINE__, "not so: " #condition); \
  } while (false)
#define CHECK_EQ(actual, expected) nt::test::checkEqual((actual), (expected), #actual, __FILE__, __LINE__)
#define CHECK_CONTAINS(text, part) nt::test::checkContains((text), (part), __FILE__, __LINE__)
// The rest of the test makes no sense without it.
#define REQUIRE(condition)                                       \
  do {                                                           \
    if (!(condition)) {                                          \
      nt::test::fail(__FILE__, __LINE__, "not so: " #condition); \
      return;                                                    \
    }                                                            \
  } while (false)
#define TEST_MAIN()                                   \
  int main(int argc, char** argv) {                   \
    return nt::test::runAll(argc > 1 ? argv[1] : ""); \
  }
