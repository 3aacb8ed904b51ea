// What the three operators' plugins do differently: output shapes, sizes that fit together, workspace, launch.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../kernels/cuda/ultramem_cuda.h"
#include "../operators.h"
#include "../shapes.h"
#include "types.h"

namespace ultramem::tensorrt {

// Attribute values in the order of the operator's description.
using Attributes = std::vector<std::int64_t>;

// How the operator's table is stored: its attribute `encoding`, kFloat where it has none.
Encoding encoding_of(const Operator& op, const Attributes& attributes);

// Inputs of a node: the optional scales are there exactly where the table is quantised.
std::int32_t input_count(const Operator& op, const Attributes& attributes);

// One run: sizes and types, and (for a launch alone) memory. In the order of the operator's description.
struct Run {
  const nvinfer1::PluginTensorDesc* inputs;
  const void* const* input_data;
  void* const* output_data;
  void* workspace;
  std::int32_t tactic;
  cudaStream_t stream;
};

struct Adapter {
  const Operator& op;
  // Dimensions of every output from those of the inputs; data play no part.
  void (*output_shapes)(const nvinfer1::DimsExprs* inputs, const Attributes& attributes, nvinfer1::DimsExprs* outputs,
                        nvinfer1::IExprBuilder& builder);
  // Throws BadInput where the sizes do not go together; equal symbols are equal already.
  void (*check)(const BoundShapes& size, const Attributes& attributes);
  // Bytes that a launch needs with these input dimensions, or less of each.
  std::size_t (*workspace)(const nvinfer1::Dims* inputs, const Attributes& attributes);
  UltramemLaunch (*launch)(const Run& run, const Attributes& attributes);
  std::vector<std::int32_t> tactics;  // besides the default, 0
};

// One for each of operators::kAll, in that order.
const std::vector<Adapter>& adapters();

}  // namespace ultramem::tensorrt
