#include "tensors.h"

namespace ultramem::harness {
namespace {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

DynamicPluginTensorDesc tensor_of(const std::vector<std::string>& dims, DataType type, const Values& sizes) {
  DynamicPluginTensorDesc tensor{};
  for (const std::string& dim : dims) tensor.desc.dims.d[tensor.desc.dims.nbDims++] = size_of(dim, sizes);
  tensor.desc.type = type;
  tensor.desc.format = TensorFormat::kLINEAR;
  tensor.min = tensor.opt = tensor.max = tensor.desc.dims;
  return tensor;
}

}  // namespace

PluginPtr create(nvinfer1::IPluginCreatorV3One& creator, const std::vector<Field>& fields, TensorRTPhase phase) {
  std::vector<PluginField> given;
  for (const Field& field : fields) {
    const void* data = field.text.empty() ? static_cast<const void*>(&field.value) : field.text.data();
    given.emplace_back(field.name.c_str(), data, field.type, field.length);
  }
  const PluginFieldCollection collection = {static_cast<std::int32_t>(given.size()), given.data()};
  return PluginPtr(creator.createPlugin("node", &collection, phase));
}

std::vector<PluginTensorDesc> Tensors::descs() const {
  std::vector<PluginTensorDesc> plain;
  for (const DynamicPluginTensorDesc& tensor : all) plain.push_back(tensor.desc);
  return plain;
}

std::int64_t size_of(const std::string& dim, const Values& sizes) {
  const std::size_t star = dim.find('*');
  if (star != std::string::npos) return size_of(dim.substr(0, star), sizes) * size_of(dim.substr(star + 1), sizes);
  return dim[0] <= '9' ? std::stoll(dim) : sizes.at(dim);
}

Tensors tensors_of(const Case& c, const Values& sizes) {
  Tensors tensors;
  for (const Tensor& input : c.inputs) {
    tensors.all.push_back(tensor_of(input.dims, types_of(input.kind).front(), sizes));
  }
  for (const Output& output : c.outputs) {
    tensors.all.push_back(tensor_of(output.dims, types_of(output.kind).front(), sizes));
  }
  return tensors;
}

}  // namespace ultramem::harness
