// Plugins made of fields, and the tensors of a case as TensorRT describes them.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "cases.h"

namespace ultramem::harness {

using PluginPtr = std::unique_ptr<nvinfer1::IPluginV3>;

// Null where the creator refuses the fields.
PluginPtr create(nvinfer1::IPluginCreatorV3One& creator, const std::vector<Field>& fields,
                 nvinfer1::TensorRTPhase phase);

// Every input and output in one row, of the first type of its kind.
struct Tensors {
  std::vector<nvinfer1::DynamicPluginTensorDesc> all;

  const nvinfer1::DynamicPluginTensorDesc* outputs(const Case& c) const { return all.data() + c.inputs.size(); }
  std::vector<nvinfer1::PluginTensorDesc> descs() const;
};

Tensors tensors_of(const Case& c, const Values& sizes);

// "H*k" or "W*2" in numbers.
std::int64_t size_of(const std::string& dim, const Values& sizes);

}  // namespace ultramem::harness
