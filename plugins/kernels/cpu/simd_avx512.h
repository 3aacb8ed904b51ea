// Vectors of sixteen floats: AVX-512 F, BW, VL and DQ. See simd_plain.h for what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "number.h"

namespace ultramem {
namespace {

struct Simd {
  using Vector = __m512;
  static constexpr std::int64_t kWidth = 16;

  static Vector splat(float value) { return _mm512_set1_ps(value); }
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static Vector load(const Half* from) { return _mm512_cvtph_ps(load_bits(from)); }
  static Vector load(const BFloat16* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_bits(from)), 16));
  }
  static void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }
  static void store(Half* to, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static float sum(Vector value) { return _mm512_reduce_add_ps(value); }
  // minps returns its second operand where either is NaN.
  static Vector ordered(Vector value) { return _mm512_min_ps(value, splat(__builtin_inff())); }
  static std::uint32_t greater(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

 private:
  static __m256i load_bits(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
};

}  // namespace
}  // namespace ultramem
