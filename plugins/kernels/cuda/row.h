// Table rows as sixteen bytes at a time: how many numbers those are, and what they mean.
#pragma once

#include <cstdint>

#include "number.h"

namespace ultramem::cuda {

struct alignas(16) Bytes16 {
  std::uint32_t words[4];
};

// Numbers of type V that lie in memory as they are computed with.
template <typename V>
struct PlainRow {
  static constexpr int kNumbers = 16 / sizeof(V);
  static constexpr int kBits = 8 * sizeof(V);

  ULTRAMEM_BLOCK static void decode(const Bytes16& bytes, float (&numbers)[kNumbers]) {
    V values[kNumbers];
    memcpy(values, &bytes, sizeof bytes);
    for (int i = 0; i < kNumbers; ++i) numbers[i] = to_float(values[i]);
  }
  ULTRAMEM_BLOCK static float at(const void* row, std::int64_t column) {
    return to_float(static_cast<const V*>(row)[column]);
  }
};

}  // namespace ultramem::cuda
