// A test is a function that CHECKs; all that is wrong is printed, and the program's exit code counts it.
#pragma once

#include <functional>
#include <iostream>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int failures = 0;

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void that(bool good, const char* what, const char* file, int line, const std::string& found) {
  if (good) return;
  ++failures;
  std::cerr << file << ":" << line << ": " << what << (found.empty() ? "" : "\n  found: " + found) << "\n";
}

}  // namespace check

#define TEST(name)                                           \
  static void name();                                        \
  static const check::Register register_##name(#name, name); \
  static void name()

#define CHECK(good) check::that(static_cast<bool>(good), #good, __FILE__, __LINE__, "")
#define CHECK_TEXT(text, part)                                                                                        \
  do {                                                                                                                \
    const std::string found_text_ = (text);                                                                           \
    check::that(found_text_.find(part) != std::string::npos, #text " holds " #part, __FILE__, __LINE__, found_text_); \
  } while (false)
// The result is an error of this code whose message holds this text.
#define CHECK_ERROR(result, expected, part)                                \
  do {                                                                     \
    const auto& found_result_ = (result);                                  \
    CHECK(!found_result_);                                                 \
    if (!found_result_) CHECK(found_result_.error().code() == (expected)); \
    if (!found_result_) CHECK_TEXT(found_result_.error().message(), part); \
  } while (false)
