#include "plugin.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "log.h"
#include "types.h"

namespace ultramem::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr std::int32_t kSuccess = 0;
constexpr std::int32_t kFailure = 1;

bool same_type(const Port& a, const Port& b) { return std::strcmp(a.type, b.type) == 0; }

std::vector<Shape> shapes_of(const PluginTensorDesc* tensors, std::size_t count) {
  std::vector<Shape> shapes;
  for (std::size_t i = 0; i < count; ++i) {
    shapes.emplace_back(tensors[i].dims.d, tensors[i].dims.d + tensors[i].dims.nbDims);
  }
  return shapes;
}

// Numbers of the description's inputs that a node with these settings has.
std::vector<std::size_t> given_inputs(const Operator& op, const Settings& settings) {
  std::vector<std::size_t> given;
  for (int i = 0; i < input_count(op, settings.attributes); ++i) {
    if (settings.resources.count(i) == 0) given.push_back(static_cast<std::size_t>(i));
  }
  return given;
}

}  // namespace

Plugin::Plugin(const Adapter& adapter, Settings settings)
    : adapter_(adapter),
      settings_(std::move(settings)),
      given_(given_inputs(adapter.op, settings_)),
      text_(to_string(adapter.op, settings_)),
      fields_(adapter.op, &settings_) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded(op().name, static_cast<Plugin*>(nullptr), [&] { return copy().release(); });
}

std::unique_ptr<Plugin> Plugin::copy() const {
  auto made = std::make_unique<Plugin>(adapter_, settings_);
  made->tactic_ = tactic_;
  made->residents_ = residents_;
  return made;
}

const Port& Plugin::port_at(std::int32_t position) const {
  if (position >= inputs()) return op().outputs[position - inputs()];
  return op().inputs[given_[static_cast<std::size_t>(position)]];
}

void Plugin::require_inputs(std::int32_t found) const {
  require(found == inputs(), op(),
          "expected " + std::to_string(inputs()) + " inputs, found " + std::to_string(found) + " (" + text_ +
              "; a quantised table comes with its scales, another without)");
}

Plugin::Inputs Plugin::all_inputs(const PluginTensorDesc* given) const {
  Inputs all{};
  for (std::size_t i = 0; i < given_.size(); ++i) all[given_[i]] = given[i];
  for (const auto& [input, resource] : settings_.resources) all[static_cast<std::size_t>(input)] = resource.desc;
  return all;
}

void Plugin::load_tables() {
  for (const auto& [input, resource] : settings_.resources) {
    if (residents_.count(input) == 0) residents_.emplace(input, find_resident(resource));
  }
}

const char* Plugin::getPluginName() const noexcept { return op().name; }

const char* Plugin::getPluginVersion() const noexcept { return kPluginVersion; }

const char* Plugin::getPluginNamespace() const noexcept { return operators::kDomain; }

std::int32_t Plugin::getNbOutputs() const noexcept { return op().output_count; }

std::int32_t Plugin::getOutputDataTypes(DataType* outputs, std::int32_t output_count, const DataType* inputs,
                                        std::int32_t input_count) const noexcept {
  return guarded(op().name, kFailure, [&] {
    require_inputs(input_count);
    for (std::int32_t o = 0; o < output_count; ++o) {
      outputs[o] = DataType::kINT64;  // the only type of what shares none with an input
      for (std::int32_t i = 0; i < input_count; ++i) {
        if (same_type(port_at(i), op().outputs[o])) outputs[o] = inputs[i];
      }
    }
    return kSuccess;
  });
}

std::int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                     const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                     std::int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(op().name, kFailure, [&] {
    require_inputs(input_count);
    require(output_count == op().output_count, op(), "expected " + std::to_string(op().output_count) + " outputs");
    nvinfer1::DimsExprs all[kMostInputs]{};
    for (std::int32_t i = 0; i < input_count; ++i) {
      const Port& port = port_at(i);
      require(inputs[i].nbDims == port.rank, op(),
              std::string("input ") + port.name + " must have " + std::to_string(port.rank) + " dimensions, found " +
                  std::to_string(inputs[i].nbDims));
      all[given_[static_cast<std::size_t>(i)]] = inputs[i];
    }
    for (const auto& [input, resource] : settings_.resources) {
      for (std::int32_t d = 0; d < resource.desc.dims.nbDims; ++d) {
        all[input].d[all[input].nbDims++] = builder.constant(resource.desc.dims.d[d]);
      }
    }
    adapter_.output_shapes(all, attributes(), outputs, builder);
    return kSuccess;
  });
}

bool Plugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                       std::int32_t input_count, std::int32_t output_count) noexcept {
  const Operator& described = op();
  if (input_count != inputs() || output_count != described.output_count) return false;
  const Port& port = port_at(position);
  const Encoding encoding = encoding_of(described, attributes());
  const PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR || !is_allowed(described, port, tensor.type, encoding))
    return false;
  for (std::int32_t before = 0; before < position; ++before) {
    if (same_type(port_at(before), port)) return tensors[before].desc.type == tensor.type;
  }
  return true;
}

std::int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc*, std::int32_t input_count,
                                     const DynamicPluginTensorDesc*, std::int32_t) noexcept {
  return guarded(op().name, kFailure, [&] {
    require_inputs(input_count);
    return kSuccess;
  });
}

std::size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                     const DynamicPluginTensorDesc*, std::int32_t) const noexcept {
  Inputs given{};
  for (std::size_t i = 0; i < std::min(given_.size(), static_cast<std::size_t>(input_count)); ++i) {
    given[i].dims = inputs[i].max;
  }
  const Inputs all = all_inputs(given.data());
  nvinfer1::Dims largest[kMostInputs];
  for (std::size_t i = 0; i < kMostInputs; ++i) largest[i] = all[i].dims;
  return adapter_.workspace(largest, attributes());
}

std::int32_t Plugin::getNbTactics() noexcept { return static_cast<std::int32_t>(adapter_.tactics.size()); }

std::int32_t Plugin::getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept {
  std::copy_n(adapter_.tactics.begin(), std::min(count, getNbTactics()), tactics);
  return kSuccess;
}

// TensorRT adds the inputs' shapes and formats.
const char* Plugin::getTimingCacheID() noexcept { return text_.c_str(); }

const char* Plugin::getMetadataString() noexcept { return text_.c_str(); }

std::int32_t Plugin::setTactic(std::int32_t tactic) noexcept {
  return guarded(op().name, kFailure, [&] {
    const auto& known = adapter_.tactics;
    require(tactic == 0 || std::find(known.begin(), known.end(), tactic) != known.end(), op(),
            "tactic " + std::to_string(tactic) + " is unknown: the engine was built with another plugin version");
    tactic_ = tactic;
    return kSuccess;
  });
}

std::int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, std::int32_t input_count, const PluginTensorDesc*,
                                   std::int32_t) noexcept {
  return guarded(op().name, kFailure, [&] {
    require_inputs(input_count);
    adapter_.check(BoundShapes(op(), shapes_of(all_inputs(inputs).data(), all_count())), attributes());
    load_tables();  // the builder times plugins that no context was attached to
    return kSuccess;
  });
}

std::int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*, const void* const* inputs,
                             void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  const Inputs descs = all_inputs(input_descs);
  const void* data[kMostInputs]{};
  for (std::size_t i = 0; i < given_.size(); ++i) data[given_[i]] = inputs[i];
  for (const auto& [input, resident] : residents_) data[input] = resident->data;
  if (residents_.size() != settings_.resources.size()) {
    log_error(std::string(op().name) + ": its tables are not loaded");
    return kFailure;
  }
  const UltramemLaunch launch =
      adapter_.launch({descs.data(), data, outputs, workspace, tactic_, stream}, attributes());
  if (launch.code == ULTRAMEM_OK && launch.cuda_error == 0) return kSuccess;
  log_error(std::string(op().name) + ": the kernel was not launched: code " + std::to_string(launch.code) +
            ", CUDA error " + std::to_string(launch.cuda_error));
  return kFailure;
}

// A context's plugins hold its tables: the first context of a process loads them, the last one lets go.
nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return guarded(op().name, static_cast<Plugin*>(nullptr), [&] {
    std::unique_ptr<Plugin> attached = copy();
    attached->load_tables();
    return attached.release();
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return fields_.get(); }

}  // namespace ultramem::tensorrt
