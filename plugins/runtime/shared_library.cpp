#include "shared_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "failure.h"

namespace ultramem::runtime {

SharedLibrary SharedLibrary::open(const std::string& what, const std::vector<std::string>& names,
                                  const std::string& fix) {
  std::string first_problem;
  for (const std::string& name : names) {
    if (void* handle = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL)) return {handle, name};
    if (first_problem.empty()) first_problem = dlerror();
  }
  fail(ULTRAMEM_CODE_MISSING, what + ": cannot load " + first_problem + "; " + fix);
}

void* SharedLibrary::symbol(const char* name) const {
  void* found = dlsym(handle_, name);
  require(found != nullptr, ULTRAMEM_CODE_VERSION, name_ + ": has no function " + name + ": not the library expected");
  return found;
}

std::string own_directory() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&own_directory), &info) == 0 || info.dli_fname == nullptr) return ".";
  return std::filesystem::path(info.dli_fname).parent_path().string();
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace ultramem::runtime
