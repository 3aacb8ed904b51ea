#include "fields.h"

#include <cstring>

namespace ultramem::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

int index_of(const Operator& op, const char* name) {
  for (int a = 0; a < op.attribute_count; ++a) {
    if (std::strcmp(op.attributes[a].name, name) == 0) return a;
  }
  throw BadInput(std::string(op.name) + ": no field is called " + name);
}

std::int64_t value_of(const Operator& op, const Attribute& attribute, const PluginField& field) {
  const std::string name = std::string("field ") + attribute.name;
  const bool narrow = field.type == PluginFieldType::kINT32;
  require(field.length == 1 && field.data != nullptr && (narrow || field.type == PluginFieldType::kINT64), op,
          name + " must be one int64, found " + std::to_string(field.length) + " of field type " +
              std::to_string(static_cast<int>(field.type)));
  const std::int64_t value =
      narrow ? *static_cast<const std::int32_t*>(field.data) : *static_cast<const std::int64_t*>(field.data);
  require(attribute.choice_count == 0 || (0 <= value && value < attribute.choice_count), op,
          name + " must be in [0, " + std::to_string(attribute.choice_count) + "), found " + std::to_string(value));
  require(attribute.choice_count != 0 || value >= 1, op, name + " must be positive, found " + std::to_string(value));
  return value;
}

}  // namespace

Attributes read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields) {
  Attributes values;
  std::vector<bool> given;
  for (int a = 0; a < op.attribute_count; ++a) {
    values.push_back(op.attributes[a].fallback);
    given.push_back(!op.attributes[a].required);
  }
  for (int f = 0; fields != nullptr && f < fields->nbFields; ++f) {
    const PluginField& field = fields->fields[f];
    require(field.name != nullptr, op, "field " + std::to_string(f) + " has no name");
    const int a = index_of(op, field.name);
    values[static_cast<std::size_t>(a)] = value_of(op, op.attributes[a], field);
    given[static_cast<std::size_t>(a)] = true;
  }
  for (int a = 0; a < op.attribute_count; ++a) {
    require(given[static_cast<std::size_t>(a)], op,
            std::string("field ") + op.attributes[a].name + " must be given, as an int64");
  }
  return values;
}

Fields::Fields(const Operator& op, const Attributes* values) {
  for (int a = 0; a < op.attribute_count; ++a) {
    const std::int64_t* value = values == nullptr ? nullptr : values->data() + a;
    fields_.emplace_back(op.attributes[a].name, value, PluginFieldType::kINT64, 1);
  }
}

const nvinfer1::PluginFieldCollection* Fields::get() {
  collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

std::string to_string(const Operator& op, const Attributes& values) {
  std::string text;
  for (int a = 0; a < op.attribute_count; ++a) {
    text.append(a == 0 ? "" : " ").append(op.attributes[a].name).append("=");
    text.append(std::to_string(values[static_cast<std::size_t>(a)]));
  }
  return text;
}

}  // namespace ultramem::tensorrt
