// Random inputs of a case and what the formula makes of them.
#pragma once

#include <cstddef>
#include <vector>

#include "cases.h"
#include "reference.h"
#include "tensors.h"

namespace ultramem::harness {

// A tensor as the kernels see it and as the formula does.
struct Value {
  std::vector<std::byte> bytes;
  Numbers numbers;
  Indices indices;
};

std::int64_t count_of(const nvinfer1::Dims& dims);

// Every input of the case, always the same ones.
std::vector<Value> draw_inputs(const Case& c, const Tensors& tensors);

// What every output must hold, indices as numbers.
std::vector<Numbers> expected_outputs(const Case& c, const std::vector<Value>& inputs);

// The numbers of an output: int64 for indices, else float32.
Numbers numbers_of(const std::vector<std::byte>& bytes, bool indices);

// Equal up to the rounding of float32.
bool are_close(const Numbers& found, const Numbers& wanted);

}  // namespace ultramem::harness
