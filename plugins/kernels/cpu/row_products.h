// Products of rows with a vector of floats.
#pragma once

#include <cstdint>

#include "row_group.h"

namespace ultramem {
namespace {

// sums[r] = lanes that add up to the sum of row_r[i] * x[i] for i in [0, count), for rows that begin at at(r). x lies
// in the order that load_pair gives, zeros behind it up to whole pairs. As many bytes are asked for from later(r) on.
template <typename V, int kRows>
void multiply_rows(const char* const* rows, const char* const* later, const float* x, std::int64_t count,
                   Vector* sums) {
  constexpr std::int64_t kPair = 2 * Simd::kWidth, kBytes = Stored<V>::offset(kPair);
  constexpr std::int64_t kPairsOfLine = kBytes < kLine ? kLine / kBytes : 1;
  Pair sum[kRows] = {};
  const auto add = [&](int r, Pair values, Pair by) {
    sum[r] = {Simd::multiply_add(values.first, by.first, sum[r].first),
              Simd::multiply_add(values.second, by.second, sum[r].second)};
  };
  const std::int64_t pairs = count / kPair, left = count % kPair;
  for (std::int64_t v = 0; v < pairs; ++v) {
    const Pair by = load_sums(x + v * kPair);
    if (v % kPairsOfLine == 0) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) prefetch<kBytes, false>(later[r] + v * kBytes);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) add(r, load_pair(Stored<V>::at(rows[r], v * kPair)), by);
  }
  if (left > 0) {
    const Pair by = load_sums(x + pairs * kPair);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      prefetch(later[r] + pairs * kBytes, Stored<V>::bytes(left));
      add(r, load_partial_pair(Stored<V>::at(rows[r], pairs * kPair), left), by);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = Simd::add(sum[r].first, sum[r].second);
}

}  // namespace
}  // namespace ultramem
