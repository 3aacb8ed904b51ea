#include "fields.h"

#include <cstring>

namespace ultramem::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// -1 where there is none.
int attribute_called(const Operator& op, const char* name) {
  for (int a = 0; a < op.attribute_count; ++a) {
    if (std::strcmp(op.attributes[a].name, name) == 0) return a;
  }
  return -1;
}

int resource_called(const Operator& op, const char* name) {
  for (int i = 0; i < op.input_count; ++i) {
    if (may_be_resource(op.inputs[i]) && std::strcmp(op.inputs[i].name, name) == 0) return i;
  }
  throw BadInput(std::string(op.name) + ": no field is called " + name);
}

Resource resource_of(const Operator& op, const Port& port, const PluginField& field) {
  require(field.type == PluginFieldType::kCHAR && field.length > 0 && field.data != nullptr, op,
          std::string("field ") + port.name + " must be a text");
  const std::string text(static_cast<const char*>(field.data), static_cast<std::size_t>(field.length));
  return parse_resource(op, port, text.substr(0, text.find('\0')));
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

// A quantised table and its scales come the same way: both as inputs, or both as fields. Their types must be right,
// since no host asks for those of what is no input.
void check_resources(const Operator& op, const Settings& settings) {
  const Encoding encoding = encoding_of(op, settings.attributes);
  const bool own = !settings.resources.empty();
  for (int i = 0; own && i < op.input_count; ++i) {
    if (!may_be_resource(op.inputs[i])) continue;
    const auto found = settings.resources.find(i);
    const bool wanted = !op.inputs[i].optional || encoding != Encoding::kFloat;
    require(wanted == (found != settings.resources.end()), op,
            std::string("field ") + op.inputs[i].name + (wanted ? " must be given" : " must not be given") +
                " with these others: a quantised table comes with its scales, another without");
    require(!wanted || is_allowed(op, op.inputs[i], found->second.desc.type, encoding), op,
            std::string("field ") + op.inputs[i].name + ": its type is not one of this encoding");
  }
}

}  // namespace

Settings read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields) {
  Settings found;
  std::vector<bool> given;
  for (int a = 0; a < op.attribute_count; ++a) {
    found.attributes.push_back(op.attributes[a].fallback);
    given.push_back(!op.attributes[a].required);
  }
  for (int f = 0; fields != nullptr && f < fields->nbFields; ++f) {
    const PluginField& field = fields->fields[f];
    require(field.name != nullptr, op, "field " + std::to_string(f) + " has no name");
    const int a = attribute_called(op, field.name);
    if (a < 0) {
      const int input = resource_called(op, field.name);
      found.resources[input] = resource_of(op, op.inputs[input], field);
      continue;
    }
    found.attributes[static_cast<std::size_t>(a)] = value_of(op, op.attributes[a], field);
    given[static_cast<std::size_t>(a)] = true;
  }
  for (int a = 0; a < op.attribute_count; ++a) {
    require(given[static_cast<std::size_t>(a)], op,
            std::string("field ") + op.attributes[a].name + " must be given, as an int64");
  }
  check_resources(op, found);
  return found;
}

Fields::Fields(const Operator& op, const Settings* settings) {
  for (int a = 0; a < op.attribute_count; ++a) {
    const std::int64_t* value = settings == nullptr ? nullptr : settings->attributes.data() + a;
    fields_.emplace_back(op.attributes[a].name, value, PluginFieldType::kINT64, 1);
  }
  for (int i = 0; i < op.input_count; ++i) {
    if (!may_be_resource(op.inputs[i]) || (settings != nullptr && settings->resources.count(i) == 0)) continue;
    const std::string* text = settings == nullptr ? nullptr : &settings->resources.at(i).text;
    fields_.emplace_back(op.inputs[i].name, text == nullptr ? nullptr : text->data(), PluginFieldType::kCHAR,
                         text == nullptr ? 0 : static_cast<std::int32_t>(text->size()));
  }
}

const nvinfer1::PluginFieldCollection* Fields::get() {
  collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

std::string to_string(const Operator& op, const Settings& settings) {
  std::string text;
  for (int a = 0; a < op.attribute_count; ++a) {
    text.append(a == 0 ? "" : " ").append(op.attributes[a].name).append("=");
    text.append(std::to_string(settings.attributes[static_cast<std::size_t>(a)]));
  }
  for (const auto& [input, resource] : settings.resources) {
    const std::string& told = resource.text;  // "TYPE SHAPE ...": where it lies makes no difference
    text.append(" ").append(op.inputs[input].name).append("=").append(told, 0, told.find(' ', told.find(' ') + 1));
  }
  return text;
}

}  // namespace ultramem::tensorrt
