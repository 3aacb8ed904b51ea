// Where the plugins' errors go: TensorRT's logger where it gave one, else standard error.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace ultramem::tensorrt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

void log_error(const std::string& message) noexcept;

// Runs `body` and returns its result; logs what it throws, with `where` before it, and returns `failed` then. No
// exception may cross into the host.
template <typename Result, typename Body>
Result guarded(const char* where, Result failed, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    log_error(std::string(where) + ": " + error.what());
  } catch (...) {
    log_error(std::string(where) + ": unknown error");
  }
  return failed;
}

}  // namespace ultramem::tensorrt
