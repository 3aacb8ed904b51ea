#include "types.h"

#include <cstring>

namespace ultramem::tensorrt {
namespace {

using nvinfer1::DataType;

DataType host_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return DataType::kFLOAT;
    case ElementType::kFloat16:
      return DataType::kHALF;
    case ElementType::kBFloat16:
      return DataType::kBF16;
    case ElementType::kInt64:
      return DataType::kINT64;
    case ElementType::kInt8:
      return DataType::kINT8;
    case ElementType::kUint8:
      break;
  }
  return DataType::kUINT8;
}

// The type variables of activations (scores, outputs) and of tables.
constexpr char kActivation[] = "T";
constexpr char kTable[] = "V";

bool is_plain(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16; }

}  // namespace

bool is_allowed(const Operator& op, const Port& port, DataType type, Encoding encoding) {
  if (std::strcmp(port.type, kActivation) == 0) return is_plain(type);
  if (std::strcmp(port.type, kTable) == 0) {
    if (encoding == Encoding::kFloat) return is_plain(type);
    return type == DataType::kINT8 || (encoding == Encoding::kFloat8E4m3 && type == DataType::kFP8);
  }
  for (int v = 0; v < op.type_count; ++v) {
    if (std::strcmp(op.types[v].name, port.type) != 0) continue;
    for (int a = 0; a < op.types[v].allowed_count; ++a) {
      if (host_type(op.types[v].allowed[a]) == type) return true;
    }
  }
  return false;
}

UltramemType activation_type(DataType type) {
  if (type == DataType::kFLOAT) return ULTRAMEM_FLOAT32;
  return type == DataType::kHALF ? ULTRAMEM_FLOAT16 : ULTRAMEM_BFLOAT16;
}

UltramemType table_type(DataType type, Encoding encoding) {
  switch (encoding) {
    case Encoding::kInt8:
      return ULTRAMEM_INT8;
    case Encoding::kInt4:
      return ULTRAMEM_INT4;
    case Encoding::kFloat8E4m3:
      return ULTRAMEM_FLOAT8_E4M3;
    case Encoding::kFloat:
      break;
  }
  return activation_type(type);
}

}  // namespace ultramem::tensorrt
