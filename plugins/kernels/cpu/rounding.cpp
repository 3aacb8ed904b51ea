// Rounding of the folds' float64 sums to bfloat16.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "ultramem_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define ULTRAMEM_EVERY_ISA __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ULTRAMEM_EVERY_ISA
#endif

// Two roundings, the first to odd: its last bit records what was dropped, so that the second is as if it were the only.
ULTRAMEM_EVERY_ISA static int64_t round_row(const double* numbers, uint16_t* rounded, int64_t width) {
  int64_t lost = 0;
  for (int64_t i = 0; i < width; ++i) {
    const double exact = numbers[i];
    const float near = static_cast<float>(exact);
    const double back = static_cast<double>(near);
    uint32_t bits;
    std::memcpy(&bits, &near, sizeof bits);
    const uint32_t inexact = back != exact;
    const uint32_t away = std::fabs(back) > std::fabs(exact);
    const uint32_t odd = (bits - away) | inexact;
    const uint32_t half = (odd + 0x7fffu + (odd >> 16 & 1u)) >> 16;
    const uint32_t nan = exact != exact;
    rounded[i] = static_cast<uint16_t>(nan ? (bits >> 16 | 0x40u) : half);
    lost += !nan & ((half & 0x7fffu) >= 0x7f80u) & (std::fabs(exact) <= 1.7976931348623157e308);
  }
  return lost;
}

int64_t ultramem_round_rows(const double* numbers, uint16_t* rounded, const int64_t* rows, int64_t count, int64_t width,
                            int64_t stride) {
  int64_t lost = 0;
  for (int64_t i = 0; i < count; ++i) lost += round_row(numbers + i * width, rounded + rows[i] * stride, width);
  return lost;
}
