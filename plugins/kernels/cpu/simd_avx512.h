// Vectors of sixteen floats: AVX-512 F, BW, VL and DQ. See simd_plain.h for what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "int4.h"

namespace ultramem {
namespace {

struct Simd {
  using Vector = __m512;
  static constexpr std::int64_t kWidth = 16;
  static constexpr int kMostPairs = 8;

  static void read_before_what_follows(Vector value) { asm volatile("" ::"x"(value)); }
  static Vector splat(float value) { return _mm512_set1_ps(value); }
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static Vector load(const Half* from) { return _mm512_cvtph_ps(load_bits(from)); }
  static Vector load(const BFloat16* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_bits(from)), 16));
  }
  static Vector load(const Int8* from) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes(from))); }
  // A half's exponent is 8 above that of a float8 with the same bits. Sign extension fills bit 14 too: it is cleared.
  static Vector load(const Float8* from) {
    const __m128i bytes = load_bytes(from);
    const __m256i half = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
    const __mmask16 is_nan = _mm_cmpeq_epi8_mask(_mm_or_si128(bytes, _mm_set1_epi8(-128)), _mm_set1_epi8(-1));
    const __m256i number = _mm256_and_si256(half, _mm256_set1_epi16(static_cast<short>(0xbfff)));
    const __m256i whole = _mm256_mask_mov_epi16(number, is_nan, _mm256_set1_epi16(0x7fff));
    return _mm512_mul_ps(_mm512_cvtph_ps(whole), splat(256));
  }
  static Vector load(Int4Cursor from) {
    const __m128i words = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from.byte())));
    const __m128i nibbles = _mm_and_si128(_mm_or_si128(words, _mm_slli_epi16(words, 4)), _mm_set1_epi8(15));
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), int4_codes());
  }
  // The permutation looks at the low four bits of a lane alone.
  static void load_nibbles(const std::uint8_t* from, Vector* low, Vector* high) {
    const __m512i bytes = _mm512_cvtepu8_epi32(load_bytes(from));
    *low = _mm512_permutexvar_ps(bytes, int4_codes());
    *high = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), int4_codes());
  }
  static void separate(Vector* a, Vector* b) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Vector first = *a, second = *b;
    *a = _mm512_permutex2var_ps(first, even, second);
    *b = _mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
  }
  static void interleave(Vector* a, Vector* b) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const Vector even = *a, odd = *b;
    *a = _mm512_permutex2var_ps(even, low, odd);
    *b = _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd);
  }
  static void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }
  static void store(Half* to, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  // Rounds to nearest, ties to even; a NaN stays one.
  static void store(BFloat16* to, Vector value) {
    const __m512i bits = _mm512_castps_si512(value), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i whole = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(whole, 16)));
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector divide(Vector a, Vector b) { return _mm512_div_ps(a, b); }
  using Raw = __m512i;
  static Raw load_raw(const BFloat16* from) { return _mm512_loadu_si512(from); }
  static Raw load_raw(const BFloat16* from, std::int64_t count) {
    return _mm512_maskz_loadu_epi16((std::uint32_t{1} << count) - 1, from);
  }
  static Vector add_products(Vector sums, Raw a, Raw b) {
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
    return _mm512_fmadd_ps(odd_numbers(a), odd_numbers(b), _mm512_fmadd_ps(even_numbers(a), even_numbers(b), sums));
#endif
  }
  static float sum(Vector value) { return _mm512_reduce_add_ps(value); }
  // Pairs of lanes, then of vectors, then the four quarters.
  static void store_four_sums(const Vector* four, float* to) {
    const Vector a = _mm512_add_ps(_mm512_unpacklo_ps(four[0], four[1]), _mm512_unpackhi_ps(four[0], four[1]));
    const Vector b = _mm512_add_ps(_mm512_unpacklo_ps(four[2], four[3]), _mm512_unpackhi_ps(four[2], four[3]));
    const Vector quarters = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  static float largest(Vector value) { return _mm512_reduce_max_ps(value); }
  static Vector power_of_two(Vector value) {
    const __m512i exponent = _mm512_add_epi32(_mm512_castps_si512(value), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  // minps returns its second operand where either is NaN.
  static Vector ordered(Vector value) { return _mm512_min_ps(value, splat(__builtin_inff())); }
  static std::uint32_t greater(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

  static void store_lanes(Vector scores, std::uint32_t position, std::uint32_t lanes, float* to,
                          std::uint32_t* positions) {
    const auto mask = static_cast<__mmask16>(lanes);
    const __m512i each = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i numbered = _mm512_add_epi32(each, _mm512_set1_epi32(static_cast<int>(position)));
    // In registers first: a masked store to memory is slow on some processors.
    store(to, _mm512_maskz_compress_ps(mask, scores));
    _mm512_storeu_si512(positions, _mm512_maskz_compress_epi32(mask, numbered));
  }
  static void move_lanes(const float* scores, const std::uint32_t* positions, std::uint32_t lanes, float* to,
                         std::uint32_t* positions_to) {
    const auto mask = static_cast<__mmask16>(lanes);
    store(to, _mm512_maskz_compress_ps(mask, load(scores)));
    _mm512_storeu_si512(positions_to, _mm512_maskz_compress_epi32(mask, _mm512_loadu_si512(positions)));
  }
  static Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static Vector smaller(Vector a, Vector b) { return _mm512_min_ps(a, b); }
  static Vector count_greater(Vector counts, Vector a, Vector b) {
    return _mm512_mask_add_ps(counts, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), counts, splat(1));
  }
  static Vector count_not_less(Vector counts, Vector a, Vector b) {
    return _mm512_mask_add_ps(counts, _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), counts, splat(1));
  }
  static Vector count_equal_after(Vector counts, Vector a, Vector b, std::int64_t lane) {
    const auto after = static_cast<__mmask16>(0xfffeu << lane);
    return _mm512_mask_add_ps(counts, _mm512_mask_cmp_ps_mask(after, a, b, _CMP_EQ_OQ), counts, splat(1));
  }

 private:
#ifndef __AVX512BF16__
  static Vector even_numbers(Raw value) { return _mm512_castsi512_ps(_mm512_slli_epi32(value, 16)); }
  static Vector odd_numbers(Raw value) {
    return _mm512_castsi512_ps(_mm512_and_si512(value, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
#endif
  static Vector int4_codes() { return _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7); }
  static __m128i load_bytes(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  static __m256i load_bits(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
};

}  // namespace
}  // namespace ultramem
