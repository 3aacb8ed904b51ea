// TensorRT's element types beside those of the operators' descriptions and of the kernels.
#pragma once

#include <NvInferRuntime.h>

#include "../kernels/ultramem_kernels.h"
#include "../operators.h"

namespace ultramem::tensorrt {

// How a table's rows are stored; the same numbers in every operator that has a table.
using Encoding = operators::sparse_lookup::Encoding;

// Whether the plugin takes `type` where the description says `port`. Two things differ from the description:
// activations may be bfloat16 besides, and the bytes of a quantised table are int8 (TensorRT gives plugins no uint8),
// or fp8 where that is what they are.
bool is_allowed(const Operator& op, const Port& port, nvinfer1::DataType type, Encoding encoding);

// Of an activation that `is_allowed` has let through.
UltramemType activation_type(nvinfer1::DataType type);

// Of a table likewise.
UltramemType table_type(nvinfer1::DataType type, Encoding encoding);

}  // namespace ultramem::tensorrt
