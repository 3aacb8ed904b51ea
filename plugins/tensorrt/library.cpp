// What TensorRT's plugin registry asks a library for: its creators, and where to log.
#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "log.h"
#include "plugin.h"
#include "resource.h"

#define ULTRAMEM_EXPORT extern "C" __attribute__((visibility("default")))

namespace ultramem::tensorrt {
namespace {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Adapter& adapter) : adapter_(adapter), field_names_(adapter.op, nullptr) {}

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    return guarded(name == nullptr ? adapter_.op.name : name, static_cast<Plugin*>(nullptr),
                   [&] { return std::make_unique<Plugin>(adapter_, read_fields(adapter_.op, fields)).release(); });
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return field_names_.get(); }
  const char* getPluginName() const noexcept override { return adapter_.op.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return operators::kDomain; }

 private:
  const Adapter& adapter_;
  Fields field_names_;
};

std::vector<std::unique_ptr<Creator>> make_creators() {
  std::vector<std::unique_ptr<Creator>> creators;
  for (const Adapter& adapter : adapters()) creators.push_back(std::make_unique<Creator>(adapter));
  return creators;
}

}  // namespace
}  // namespace ultramem::tensorrt

ULTRAMEM_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  using namespace ultramem::tensorrt;
  static const std::vector<std::unique_ptr<Creator>> creators = make_creators();
  static const std::vector<nvinfer1::IPluginCreatorInterface*> list = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> all;
    for (const auto& creator : creators) all.push_back(creator.get());
    return all;
  }();
  count = static_cast<std::int32_t>(list.size());
  return list.data();
}

ULTRAMEM_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { ultramem::tensorrt::set_logger_finder(finder); }

// Plugins that bring their tables look for them in `folder`, an engine's model directory, before others.
ULTRAMEM_EXPORT void ultramem_add_tables(const char* folder) {
  using namespace ultramem::tensorrt;
  guarded("ultramem_add_tables", 0, [&] { return add_folder(folder == nullptr ? "" : folder), 0; });
}

// The version of the package that this library belongs to.
ULTRAMEM_EXPORT const char* ultramem_version() { return ULTRAMEM_VERSION; }
