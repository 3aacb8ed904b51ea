// The shape of an operator's description. The descriptions themselves are generated into operators.h.
#pragma once

#include <cstdint>

namespace ultramem {

// The values are those of ONNX's TensorProto.DataType, which hosts share.
enum class ElementType : std::int32_t {
  kFloat32 = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt64 = 7,
  kFloat16 = 10,
  kBFloat16 = 16
};

struct Port {
  const char* name;
  const char* type;       // name of one of the operator's type variables
  int rank;               // number of dimensions
  const char* shape[4];   // symbol of each dimension; equal symbols are equal sizes
  bool optional = false;  // may be left out; such inputs come last
};

struct TypeVariable {
  const char* name;
  int allowed_count;
  ElementType allowed[5];
};

struct Attribute {
  const char* name;  // always an int64
  bool required;
  std::int64_t fallback;  // the value where the node says nothing; meaningless for a required attribute
  int choice_count;       // values of an enumeration are [0, choice_count); 0 for a plain number
};

struct Operator {
  const char* name;
  int input_count;
  Port inputs[5];
  int output_count;
  Port outputs[2];
  int type_count;
  TypeVariable types[4];
  int attribute_count;
  Attribute attributes[2];
};

}  // namespace ultramem
