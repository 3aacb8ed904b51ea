// Powers of two, a vector at a time. Include after one simd_*.h.
#pragma once

#include "span.h"

namespace ultramem {
namespace {

// 2^x for x <= 0, and 0 below 2^-126; a NaN stays one. A polynomial of the fraction in [-1/2, 1/2] (relative error
// below 2e-9 before rounding) times the power of two that is left.
inline Vector exp2(Vector x) {
  constexpr float kLeast = -126.0f, kToWhole = 0x1.8p23f;  // adding it leaves no bits for a fraction
  constexpr float kFactors[] = {0x1.5f456ap-10f, 0x1.3b2dbcp-7f, 0x1.c6aed4p-5f, 0x1.ebfbdap-3f, 0x1.62e430p-1f, 1.0f};
  const Vector zero = Simd::splat(0), least = Simd::splat(kLeast);
  const Vector held = Simd::larger(least, x);  // of a number and NaN the second
  const Vector whole = Simd::add(held, Simd::splat(kToWhole));
  const Vector fraction = Simd::add(held, Simd::multiply_add(Simd::splat(-1), whole, Simd::splat(kToWhole)));
  Vector sum = Simd::splat(0x1.41d32ep-13f);
  for (const float factor : kFactors) sum = Simd::multiply_add(sum, fraction, Simd::splat(factor));
  const Vector power = Simd::multiply_add(Simd::power_of_two(whole), Simd::count_greater(zero, x, least), zero);
  return Simd::multiply_add(sum, power, zero);
}

}  // namespace
}  // namespace ultramem
