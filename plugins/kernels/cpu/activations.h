// SiLU and the exact GELU, a vector at a time. Include after one simd_*.h.
//
// A NaN stays one and +infinity too; -infinity becomes NaN, as in PyTorch and in the operator's function body.
#pragma once

#include "exp2.h"

namespace ultramem {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;

inline Vector multiply(Vector a, Vector b) { return Simd::multiply_add(a, b, Simd::splat(0)); }

// x / (1 + e^-x), with e^-|x| alone, which does not overflow: x / (1 + e^-x) or x e^x / (1 + e^x).
inline Vector silu(Vector x) {
  const Vector zero = Simd::splat(0), above = Simd::larger(zero, x), below = Simd::smaller(zero, x);
  const Vector minus = Simd::smaller(x, multiply(x, Simd::splat(-1)));
  const Vector power = exp2(multiply(minus, Simd::splat(kLog2E)));
  return Simd::divide(Simd::multiply_add(below, power, above), Simd::add(power, Simd::splat(1)));
}

// x times the share of the normal distribution below x. The share beyond t = |x| is e^(-t^2/2) times a polynomial in
// s = 1 / (1 + 0.2106 t), the form of Abramowitz and Stegun 7.1.26; these factors are a least-maximum fit for t up to
// 14 (relative error below 7e-8), behind which it is 0 in float32.
inline Vector gelu(Vector x) {
  constexpr float kBend = 0.2106f;
  constexpr float kFactors[] = {0x1.185272p-2f, -0x1.401a7cp-2f, 0x1.53aff6p-2f, -0x1.55189cp-4f,
                                0x1.efc32cp-4f, 0x1.2002d6p-4f,  0x1.5cf0a8p-4f, 0x1.57e3cp-4f};
  const Vector zero = Simd::splat(0), one = Simd::splat(1);
  const Vector t = Simd::larger(x, multiply(x, Simd::splat(-1)));
  const Vector s = Simd::divide(one, Simd::multiply_add(t, Simd::splat(kBend), one));
  Vector sum = Simd::splat(-0x1.1f218p-4f);
  for (const float factor : kFactors) sum = Simd::multiply_add(sum, s, Simd::splat(factor));
  const Vector power = exp2(multiply(multiply(t, Simd::splat(-0.5f * kLog2E)), t));
  const Vector beyond = multiply(multiply(sum, s), power);
  // Below 0 the share is what lies beyond, else what is left of 1.
  const Vector step = Simd::count_greater(zero, x, zero);
  return multiply(x, Simd::multiply_add(Simd::multiply_add(step, Simd::splat(-2), one), beyond, step));
}

}  // namespace
}  // namespace ultramem
