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

// The type of an output: that of the inputs which share its type variable, or the variable's only one.
DataType output_type(const Operator& op, const Port& output, const DataType* inputs) {
  for (int i = 0; i < op.input_count; ++i) {
    if (same_type(op.inputs[i], output)) return inputs[i];
  }
  return DataType::kINT64;
}

std::vector<Shape> shapes_of(const PluginTensorDesc* tensors, std::int32_t count) {
  std::vector<Shape> shapes;
  for (std::int32_t i = 0; i < count; ++i)
    shapes.emplace_back(tensors[i].dims.d, tensors[i].dims.d + tensors[i].dims.nbDims);
  return shapes;
}

}  // namespace

Plugin::Plugin(const Adapter& adapter, Attributes attributes)
    : adapter_(adapter),
      attributes_(std::move(attributes)),
      attribute_text_(to_string(adapter.op, attributes_)),
      fields_(adapter.op, &attributes_) {}

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
  return guarded(op().name, static_cast<Plugin*>(nullptr), [&] {
    auto copy = std::make_unique<Plugin>(adapter_, attributes_);
    copy->tactic_ = tactic_;
    return copy.release();
  });
}

const Port& Plugin::port_at(std::int32_t position) const {
  return position < inputs() ? op().inputs[position] : op().outputs[position - inputs()];
}

void Plugin::require_inputs(std::int32_t found) const {
  require(found == inputs(), op(),
          "expected " + std::to_string(inputs()) + " inputs, found " + std::to_string(found) + " (" + attribute_text_ +
              "; a quantised table comes with its scales, another without)");
}

const char* Plugin::getPluginName() const noexcept { return op().name; }

const char* Plugin::getPluginVersion() const noexcept { return kPluginVersion; }

const char* Plugin::getPluginNamespace() const noexcept { return operators::kDomain; }

std::int32_t Plugin::getNbOutputs() const noexcept { return op().output_count; }

std::int32_t Plugin::getOutputDataTypes(DataType* outputs, std::int32_t output_count, const DataType* inputs,
                                        std::int32_t input_count) const noexcept {
  return guarded(op().name, kFailure, [&] {
    require_inputs(input_count);
    for (std::int32_t i = 0; i < output_count; ++i) outputs[i] = output_type(op(), op().outputs[i], inputs);
    return kSuccess;
  });
}

std::int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                     const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                     std::int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(op().name, kFailure, [&] {
    require_inputs(input_count);
    require(output_count == op().output_count, op(), "expected " + std::to_string(op().output_count) + " outputs");
    for (std::int32_t i = 0; i < input_count; ++i) {
      const Port& port = op().inputs[i];
      require(inputs[i].nbDims == port.rank, op(),
              std::string("input ") + port.name + " must have " + std::to_string(port.rank) + " dimensions, found " +
                  std::to_string(inputs[i].nbDims));
    }
    adapter_.output_shapes(inputs, attributes_, outputs, builder);
    return kSuccess;
  });
}

bool Plugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                       std::int32_t input_count, std::int32_t output_count) noexcept {
  const Operator& described = op();
  if (input_count != inputs() || output_count != described.output_count) return false;
  const Port& port = port_at(position);
  const Encoding encoding = encoding_of(described, attributes_);
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
  nvinfer1::Dims largest[sizeof op().inputs / sizeof *op().inputs];
  for (std::int32_t i = 0; i < std::min(input_count, this->inputs()); ++i) largest[i] = inputs[i].max;
  return adapter_.workspace(largest, attributes_);
}

std::int32_t Plugin::getNbTactics() noexcept { return static_cast<std::int32_t>(adapter_.tactics.size()); }

std::int32_t Plugin::getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept {
  std::copy_n(adapter_.tactics.begin(), std::min(count, getNbTactics()), tactics);
  return kSuccess;
}

// The attributes are all that makes one plugin of an operator faster than another; TensorRT adds shapes and formats.
const char* Plugin::getTimingCacheID() noexcept { return attribute_text_.c_str(); }

const char* Plugin::getMetadataString() noexcept { return attribute_text_.c_str(); }

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
    adapter_.check(BoundShapes(op(), shapes_of(inputs, input_count)), attributes_);
    return kSuccess;
  });
}

std::int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*, const void* const* inputs,
                             void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  const UltramemLaunch launch =
      adapter_.launch({input_descs, inputs, outputs, workspace, tactic_, stream}, attributes_);
  if (launch.code == ULTRAMEM_OK && launch.cuda_error == 0) return kSuccess;
  log_error(std::string(op().name) + ": the kernel was not launched: code " + std::to_string(launch.code) +
            ", CUDA error " + std::to_string(launch.cuda_error));
  return kFailure;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return fields_.get(); }

}  // namespace ultramem::tensorrt
