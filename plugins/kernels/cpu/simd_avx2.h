// Vectors of eight floats: AVX2, FMA and F16C. See simd_plain.h for what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "number.h"

namespace ultramem {
namespace {

struct Simd {
  using Vector = __m256;
  static constexpr std::int64_t kWidth = 8;

  static Vector splat(float value) { return _mm256_set1_ps(value); }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Vector load(const Half* from) { return _mm256_cvtph_ps(load_bits(from)); }
  static Vector load(const BFloat16* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits(from)), 16));
  }
  static void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }
  static void store(Half* to, Vector value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static float sum(Vector value) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  // minps returns its second operand where either is NaN.
  static Vector ordered(Vector value) { return _mm256_min_ps(value, splat(__builtin_inff())); }
  static std::uint32_t greater(Vector a, Vector b) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }

 private:
  static __m128i load_bits(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
};

}  // namespace
}  // namespace ultramem
