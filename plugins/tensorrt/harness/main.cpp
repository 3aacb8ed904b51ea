// ultramem_tensorrt_harness LIBRARY [host|device]: drives every plugin of the library without any TensorRT library, and
// where it is told the memory of the kernels, runs them too. Prints what is wrong and how many checks there were; exits
// 1 where something is.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "drive.h"
#include "enqueue.h"
#include "memory.h"

namespace {

using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(std::int32_t&);
using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);

// Counts the errors that plugins log, which a wrong call must leave behind.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char*) noexcept override { errors += severity == Severity::kERROR ? 1 : 0; }
  int errors = 0;
};

class Finder final : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return &logger; }
  Logger logger;
};

nvinfer1::IPluginCreatorV3One* creator_of(GetCreators get, const std::string& name) {
  std::int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* all = get(count);
  for (std::int32_t i = 0; i < count; ++i) {
    const nvinfer1::InterfaceInfo info = all[i]->getInterfaceInfo();
    if (std::strcmp(info.kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
    auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(all[i]);
    if (name == creator->getPluginName()) return creator;
  }
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace ultramem::harness;
  const std::string place = argc == 3 ? argv[2] : "";
  if (argc < 2 || argc > 3 || (argc == 3 && place != "host" && place != "device")) {
    std::fprintf(stderr, "usage: ultramem_tensorrt_harness LIBRARY [host|device]\n");
    return 2;
  }
  const std::unique_ptr<Memory> memory = place == "host"     ? host_memory()
                                         : place == "device" ? device_memory()
                                                             : nullptr;
  if (place == "device" && memory == nullptr) {
    std::fprintf(stderr, "there is no GPU here\n");
    return 2;
  }
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  const auto set_logger_finder = reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"));
  const auto add_tables = reinterpret_cast<AddTables>(dlsym(library, "ultramem_add_tables"));
  if (get_creators == nullptr || set_logger_finder == nullptr || add_tables == nullptr) {
    std::fprintf(stderr, "%s exports no getCreators, setLoggerFinder or ultramem_add_tables\n", argv[1]);
    return 2;
  }
  static Finder finder;
  set_logger_finder(&finder);

  Report report;
  for (const Case& c : cases()) {
    nvinfer1::IPluginCreatorV3One* creator = creator_of(get_creators, c.name);
    report.expect(creator != nullptr, c.name + ": has a creator");
    if (creator == nullptr) continue;
    const int before = finder.logger.errors;
    drive(*creator, c, report);
    report.expect(finder.logger.errors >= before + static_cast<int>(c.wrong_fields.size() + c.wrong_sizes.size()),
                  c.name + ": every refusal was logged");
    if (memory != nullptr) enqueue(*creator, c, *memory, report);
    if (memory != nullptr) enqueue_with_own_tables(*creator, c, add_tables, *memory, report);
  }
  std::printf("%d checks, %d failed\n", report.checks(), report.failures());
  return report.failures() == 0 ? 0 : 1;
}
