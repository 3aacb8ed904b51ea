// A table that a plugin brings itself instead of taking it as an input of its node: loaded once a process from the
// model's own file. Its field says what it is: "TYPE SHAPE OFFSET FINGERPRINT FILE", for example
// "bfloat16 1210000x512 4096 9f86d081... model-memory.safetensors".
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>

#include "../description.h"
#include "../gpu_tables/tables.h"

namespace ultramem::tensorrt {

struct Resource {
  std::string text;                 // the field
  nvinfer1::PluginTensorDesc desc;  // as that of an input would be
  gpu_tables::Source source;        // its file's name relative to the folder that holds the model
};

// Whether `port` may be such a table: values, or their scales.
bool may_be_resource(const Port& port);

// Throws BadInput that names the field.
Resource parse_resource(const Operator& op, const Port& port, const std::string& text);

// From now on tables are looked for in `folder` too, the latest first.
void add_folder(const std::string& folder);

// The table in one of the folders, or in $ULTRAMEM_GPU_TABLES_FOLDER, placed as $ULTRAMEM_GPU_TABLES says. Throws
// Failure where none holds it, or holds another.
std::shared_ptr<const gpu_tables::Resident> find_resident(const Resource& resource);

}  // namespace ultramem::tensorrt
