// TensorRT's element types beside those of the operators' descriptions and of the kernels.
#pragma once

#include <NvInferRuntime.h>

#include "../kernels/ultramem_kernels.h"
#include "../operators.h"

namespace ultramem::tensorrt {

// Whether the plugin takes `type` where the description says `port`. Activations may be bfloat16 here besides.
bool is_allowed(const Operator& op, const Port& port, nvinfer1::DataType type);

// Of a table or an activation that `is_allowed` has let through.
UltramemType kernel_type(nvinfer1::DataType type);

}  // namespace ultramem::tensorrt
