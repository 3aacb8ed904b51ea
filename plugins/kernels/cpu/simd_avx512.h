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
  static Vector load(const Int8* from) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes(from))); }
  // A half's exponent is 8 above that of a float8 with the same bits.
  static Vector load(const Float8* from) {
    const __m256i words = _mm256_cvtepu8_epi16(load_bytes(from));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0x80)), 8);
    const __m256i magnitude = _mm256_and_si256(words, _mm256_set1_epi16(0x7f));
    const __mmask16 is_nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
    const __m256i half = _mm256_or_si256(sign, _mm256_slli_epi16(magnitude, 7));
    const __m256i whole = _mm256_mask_mov_epi16(half, is_nan, _mm256_set1_epi16(0x7fff));
    return _mm512_mul_ps(_mm512_cvtph_ps(whole), splat(256));
  }
  static Vector load(Int4Cursor from) {
    const __m128i words = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from.byte())));
    const __m128i nibbles = _mm_and_si128(_mm_or_si128(words, _mm_slli_epi16(words, 4)), _mm_set1_epi8(15));
    const Vector codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), codes);
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
  static __m128i load_bytes(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  static __m256i load_bits(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
};

}  // namespace
}  // namespace ultramem
