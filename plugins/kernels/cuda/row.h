// Table rows as sixteen bytes at a time: how many numbers those are, and what they mean.
#pragma once

#include <cstdint>

#include "../number.h"

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

// Four bits a number, two a byte, the first in the low half.
struct Int4Row {
  static constexpr int kNumbers = 32;
  static constexpr int kBits = 4;

  ULTRAMEM_BLOCK static void decode(const Bytes16& bytes, float (&numbers)[kNumbers]) {
    for (int i = 0; i < kNumbers; ++i) {
      numbers[i] = static_cast<float>(static_cast<int>(bytes.words[i / 8] >> i % 8 * 4 & 15u) - 8);
    }
  }
  ULTRAMEM_BLOCK static float at(const void* row, std::int64_t column) {
    const int byte = static_cast<const std::uint8_t*>(row)[column / 2];
    return static_cast<float>((column % 2 == 0 ? byte & 15 : byte >> 4) - 8);
  }
};

}  // namespace ultramem::cuda
