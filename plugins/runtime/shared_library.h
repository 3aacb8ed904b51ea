// A library opened at run time. It stays loaded: ONNX Runtime and its plugins keep threads and statics of their own.
#pragma once

#include <string>
#include <vector>

namespace ultramem::runtime {

class SharedLibrary {
 public:
  // The first of `names` (paths, or names for the loader to search) that opens. Throws Failure MISSING that says
  // "`what`: cannot load ...; `fix`".
  static SharedLibrary open(const std::string& what, const std::vector<std::string>& names, const std::string& fix);

  // Throws Failure VERSION where the library has no such function.
  template <typename Function>
  Function* function(const char* name) const {
    return reinterpret_cast<Function*>(symbol(name));
  }

  const std::string& name() const { return name_; }

 private:
  SharedLibrary(void* handle, std::string name) : handle_(handle), name_(std::move(name)) {}
  void* symbol(const char* name) const;

  void* handle_;
  std::string name_;
};

// The directory that holds this library itself, to find what is installed beside it.
std::string own_directory();

// An environment variable's value, "" where it is not set.
std::string environment(const char* name);

}  // namespace ultramem::runtime
