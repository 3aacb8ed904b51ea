// A plugin's fields: its operator's attributes, each one int64, and the tables that it brings itself, each a text.
#pragma once

#include <NvInferRuntime.h>

#include <map>
#include <string>
#include <vector>

#include "adapters.h"
#include "resource.h"

namespace ultramem::tensorrt {

// What makes one node of an operator: `resources` by the number of the input that they stand for.
struct Settings {
  Attributes attributes;
  std::map<int, Resource> resources;
};

// What `fields` say, defaults where they are silent. Throws BadInput that names a field which is unknown, missing, of
// another type or out of range.
Settings read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields);

// A collection that refers to `settings`, or, where that is null, says all names and types.
class Fields {
 public:
  Fields(const Operator& op, const Settings* settings);

  const nvinfer1::PluginFieldCollection* get();

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// "blocks=4 encoding=0", and the type and shape of its own tables: all that makes one node faster than another.
std::string to_string(const Operator& op, const Settings& settings);

}  // namespace ultramem::tensorrt
