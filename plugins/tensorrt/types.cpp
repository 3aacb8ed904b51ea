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
      break;
  }
  return DataType::kINT64;
}

// The type variable of activations, scores and outputs. ONNX Runtime's CPU kernels take no bfloat16 there; ours on the
// device do.
constexpr char kActivation[] = "T";

}  // namespace

bool is_allowed(const Operator& op, const Port& port, DataType type) {
  if (std::strcmp(port.type, kActivation) == 0 && type == DataType::kBF16) return true;
  for (int v = 0; v < op.type_count; ++v) {
    if (std::strcmp(op.types[v].name, port.type) != 0) continue;
    for (int a = 0; a < op.types[v].allowed_count; ++a) {
      if (host_type(op.types[v].allowed[a]) == type) return true;
    }
  }
  return false;
}

UltramemType kernel_type(DataType type) {
  if (type == DataType::kFLOAT) return ULTRAMEM_FLOAT32;
  return type == DataType::kHALF ? ULTRAMEM_FLOAT16 : ULTRAMEM_BFLOAT16;
}

}  // namespace ultramem::tensorrt
