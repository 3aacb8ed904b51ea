// How the scratch of SparseGate is laid out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ultramem_kernels.h"

namespace ultramem {
namespace {

// What of a row is multiplied by x, for each product of it.
struct GatePart {
  std::int64_t column;  // where it begins, with a whole byte
  std::int64_t lead;    // numbers before the first that x meets: of int4, one that shares its byte
  std::int64_t count;   // numbers, those included
  float* x;             // as many, and more up to a multiple of kMostPair: 0 where there is no x
};

// The one product of a row, or the two of swiglu. With a null base it only measures.
struct GateScratch {
  static constexpr std::int64_t kMostPair = 32;  // numbers of two of the widest vectors

  GateScratch(const UltramemSparseGate& problem, void* base) : parts(problem.activation == ULTRAMEM_SWIGLU ? 2 : 1) {
    const std::int64_t width = problem.x_width, lead = problem.table.type == ULTRAMEM_INT4 ? width % 2 : 0;
    auto* first = static_cast<float*>(base);
    auto* second = lead == 0 || first == nullptr ? first : first + padded(width);
    part[0] = {0, 0, width, first};
    part[1] = {width - lead, lead, width + lead, second};
    bytes = static_cast<std::size_t>(padded(width) + (lead == 0 ? 0 : padded(width + lead))) * sizeof(float);
  }

  static std::int64_t padded(std::int64_t count) { return (count + kMostPair - 1) / kMostPair * kMostPair; }

  int parts;
  GatePart part[2];
  std::size_t bytes;
};

}  // namespace
}  // namespace ultramem
