// A plugin's fields: its operator's attributes, each one int64.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "adapters.h"

namespace ultramem::tensorrt {

// The values that `fields` gives the operator's attributes, defaults where it is silent. Throws BadInput that names a
// field which is unknown, missing, of another type or out of range.
Attributes read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields);

// A collection that refers to `values`, or, where that is null, says only names and types.
class Fields {
 public:
  Fields(const Operator& op, const Attributes* values);

  const nvinfer1::PluginFieldCollection* get();

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// "k=32"
std::string to_string(const Operator& op, const Attributes& values);

}  // namespace ultramem::tensorrt
