// Vectors of eight floats: AVX2, FMA and F16C. See simd_plain.h for what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "int4.h"

namespace ultramem {
namespace {

struct Simd {
  using Vector = __m256;
  static constexpr std::int64_t kWidth = 8;
  static constexpr int kMostPairs = 4;

  static void read_before_what_follows(Vector value) { asm volatile("" ::"x"(value)); }
  static Vector splat(float value) { return _mm256_set1_ps(value); }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Vector load(const Half* from) { return _mm256_cvtph_ps(load_bits(from)); }
  static Vector load(const BFloat16* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits(from)), 16));
  }
  static Vector load(const Int8* from) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_bytes(from))); }
  // A half's exponent is 8 above that of a float8 with the same bits.
  static Vector load(const Float8* from) {
    const __m128i bytes = load_bytes(from), words = _mm_cvtepu8_epi16(bytes);
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(words, _mm_set1_epi16(0x80)), 8);
    const __m128i magnitude = _mm_and_si128(words, _mm_set1_epi16(0x7f));
    const __m128i is_nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
    const __m128i half = _mm_or_si128(_mm_or_si128(sign, _mm_slli_epi16(magnitude, 7)), _mm_srli_epi16(is_nan, 1));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), splat(256));
  }
  static Vector load(Int4Cursor from) {
    std::int32_t bits;
    std::memcpy(&bits, from.byte(), sizeof bits);
    const __m128i words = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(bits));
    const __m128i nibbles = _mm_and_si128(_mm_or_si128(words, _mm_slli_epi16(words, 4)), _mm_set1_epi8(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(nibbles), _mm256_set1_epi32(8)));
  }
  static void load_nibbles(const std::uint8_t* from, Vector* low, Vector* high) {
    const __m256i bytes = _mm256_cvtepu8_epi32(load_bytes(from)), eight = _mm256_set1_epi32(8);
    *low = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(bytes, _mm256_set1_epi32(15)), eight));
    *high = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bytes, 4), eight));
  }
  static void separate(Vector* a, Vector* b) {
    const Vector even = _mm256_shuffle_ps(*a, *b, 0x88), odd = _mm256_shuffle_ps(*a, *b, 0xdd);
    *a = swap_middle(even);
    *b = swap_middle(odd);
  }
  static void interleave(Vector* a, Vector* b) {
    const Vector even = *a, odd = *b, low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    *a = _mm256_permute2f128_ps(low, high, 0x20);
    *b = _mm256_permute2f128_ps(low, high, 0x31);
  }
  static void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }
  static void store(Half* to, Vector value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  // Rounds to nearest, ties to even; a NaN stays one.
  static void store(BFloat16* to, Vector value) {
    const __m256i bits = _mm256_castps_si256(value), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), splat_bits(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, splat_bits(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i whole = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, splat_bits(0x400000)), nan);
    const __m256i high = _mm256_srli_epi32(whole, 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector divide(Vector a, Vector b) { return _mm256_div_ps(a, b); }
  using Raw = __m256i;
  static Raw load_raw(const BFloat16* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static Raw load_raw(const BFloat16* from, std::int64_t count) {
    BFloat16 numbers[2 * kWidth] = {};
    std::memcpy(numbers, from, static_cast<std::size_t>(count) * sizeof(BFloat16));
    return load_raw(numbers);
  }
  static Vector add_products(Vector sums, Raw a, Raw b) {
    return _mm256_fmadd_ps(odd_numbers(a), odd_numbers(b), _mm256_fmadd_ps(even_numbers(a), even_numbers(b), sums));
  }
  static float sum(Vector value) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static void store_four_sums(const Vector* four, float* to) {
    const Vector sums = _mm256_hadd_ps(_mm256_hadd_ps(four[0], four[1]), _mm256_hadd_ps(four[2], four[3]));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  }
  static float largest(Vector value) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static Vector power_of_two(Vector value) {
    const __m256i exponent = _mm256_add_epi32(_mm256_castps_si256(value), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  // minps returns its second operand where either is NaN.
  static Vector ordered(Vector value) { return _mm256_min_ps(value, splat(__builtin_inff())); }
  static std::uint32_t greater(Vector a, Vector b) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }

  static void store_lanes(Vector scores, std::uint32_t position, std::uint32_t lanes, float* to,
                          std::uint32_t* positions) {
    float values[kWidth];
    store(values, scores);
    for (; lanes != 0; lanes &= lanes - 1) {
      const auto lane = static_cast<std::uint32_t>(__builtin_ctz(lanes));
      *to++ = values[lane];
      *positions++ = position + lane;
    }
  }
  static void move_lanes(const float* scores, const std::uint32_t* positions, std::uint32_t lanes, float* to,
                         std::uint32_t* positions_to) {
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      *to++ = scores[lane];
      *positions_to++ = positions[lane];
    }
  }
  static Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static Vector smaller(Vector a, Vector b) { return _mm256_min_ps(a, b); }
  static Vector count_greater(Vector counts, Vector a, Vector b) {
    return _mm256_add_ps(counts, _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), splat(1)));
  }
  static Vector count_not_less(Vector counts, Vector a, Vector b) {
    return _mm256_add_ps(counts, _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ), splat(1)));
  }
  static Vector count_equal_after(Vector counts, Vector a, Vector b, std::int64_t lane) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i after = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(static_cast<int>(lane)));
    const Vector counted = _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ), _mm256_castsi256_ps(after));
    return _mm256_add_ps(counts, _mm256_and_ps(counted, splat(1)));
  }

 private:
  // The second and third quarters change places.
  static Vector swap_middle(Vector value) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(value), 0xd8));
  }
  static Vector even_numbers(Raw value) { return _mm256_castsi256_ps(_mm256_slli_epi32(value, 16)); }
  static Vector odd_numbers(Raw value) {
    return _mm256_castsi256_ps(_mm256_and_si256(value, splat_bits(static_cast<int>(0xffff0000))));
  }
  static __m256i splat_bits(int bits) { return _mm256_set1_epi32(bits); }
  static __m128i load_bits(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  static __m128i load_bytes(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
};

}  // namespace
}  // namespace ultramem
