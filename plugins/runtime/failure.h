// How this library fails inside: an exception that the C API turns into an UltramemError.
#pragma once

#include <stdexcept>
#include <string>

#include "include/ultramem/ultramem.h"

namespace ultramem::runtime {

struct Failure : std::runtime_error {
  Failure(UltramemCode code, const std::string& message) : std::runtime_error(message), code(code) {}
  UltramemCode code;
};

[[noreturn]] inline void fail(UltramemCode code, const std::string& message) { throw Failure(code, message); }

inline void require(bool good, UltramemCode code, const std::string& message) {
  if (!good) fail(code, message);
}

}  // namespace ultramem::runtime
