// One plugin class for every operator: what TensorRT asks is answered from the operator's description and its adapter.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "adapters.h"
#include "fields.h"

namespace ultramem::tensorrt {

inline constexpr char kPluginVersion[] = "1";  // of the fields and of what they mean; operators::kVersion as text

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Adapter& adapter, Settings settings);

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  // IPluginV3OneBuild
  std::int32_t getNbOutputs() const noexcept override;
  std::int32_t getOutputDataTypes(nvinfer1::DataType* outputs, std::int32_t output_count,
                                  const nvinfer1::DataType* inputs, std::int32_t input_count) const noexcept override;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                               const nvinfer1::DimsExprs* shape_inputs, std::int32_t shape_input_count,
                               nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                               nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 std::int32_t input_count, std::int32_t output_count) noexcept override;
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) noexcept override;
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) const noexcept override;
  std::int32_t getNbTactics() noexcept override;
  std::int32_t getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept override;
  const char* getTimingCacheID() noexcept override;
  const char* getMetadataString() noexcept override;

  // IPluginV3OneRuntime
  std::int32_t setTactic(std::int32_t tactic) noexcept override;
  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                             const nvinfer1::PluginTensorDesc* outputs, std::int32_t output_count) noexcept override;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                       const void* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  static constexpr std::size_t kMostInputs = sizeof(Operator::inputs) / sizeof(Port);

  const Operator& op() const { return adapter_.op; }
  const Attributes& attributes() const { return settings_.attributes; }
  // Inputs of the node: those of the description but for the tables that the plugin brings.
  std::int32_t inputs() const { return static_cast<std::int32_t>(given_.size()); }
  // Port number `position` of the node's inputs and outputs counted through.
  const Port& port_at(std::int32_t position) const;
  // Throws BadInput where a node has another number of inputs.
  void require_inputs(std::int32_t found) const;
  // The inputs in the order of the description: the node's, and our own tables in their places.
  using Inputs = std::array<nvinfer1::PluginTensorDesc, kMostInputs>;
  Inputs all_inputs(const nvinfer1::PluginTensorDesc* given) const;
  std::size_t all_count() const { return given_.size() + settings_.resources.size(); }
  std::unique_ptr<Plugin> copy() const;
  // Loads what of our own tables is not there yet. Throws Failure.
  void load_tables();

  const Adapter& adapter_;
  Settings settings_;
  std::vector<std::size_t> given_;  // numbers of the description's inputs that the node has
  std::string text_;
  Fields fields_;
  std::int32_t tactic_ = 0;
  std::map<int, std::shared_ptr<const gpu_tables::Resident>> residents_;  // of settings_.resources
};

}  // namespace ultramem::tensorrt
