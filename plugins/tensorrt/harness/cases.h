// What each plugin is driven with, and what it must answer: written out by hand from docs/operators.md, so that it does
// not follow a mistake of the plugins' own tables.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "expressions.h"

namespace ultramem::harness {

using nvinfer1::DataType;

// A field of one int64, or of what `type` and `length` say instead; of `text` where there is any.
struct Field {
  std::string name;
  std::int64_t value = 0;
  nvinfer1::PluginFieldType type = nvinfer1::PluginFieldType::kINT64;
  std::int32_t length = 1;
  std::string text = {};
};

Field text_field(const std::string& name, const std::string& text);

struct Tensor {
  std::vector<std::string> dims;  // each a free dimension
  std::string kind;               // tensors of one kind have one type
};

struct Output {
  std::vector<std::string> dims;  // "H*k" is the product of a free dimension and a field, "W*2" that with a number
  std::string kind;
};

struct Case {
  std::string name;
  std::vector<Field> fields;
  std::set<std::string> own_tables;  // fields that may stand for inputs
  std::vector<std::vector<Field>> wrong_fields;
  std::vector<Tensor> inputs;
  std::vector<Output> outputs;
  Values sizes;                     // that fit together
  std::vector<Values> wrong_sizes;  // replacements that do not
  std::int32_t tactics;             // besides the default
};

const std::vector<Case>& cases();

// The element types that tensors of a kind may have.
const std::vector<DataType>& types_of(const std::string& kind);

}  // namespace ultramem::harness
