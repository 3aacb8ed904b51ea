// Vectors of one float, for any machine; the compiler may widen the loops. Defines what a Simd type must offer.
#pragma once

#include <cstdint>

#include "int4.h"

namespace ultramem {
namespace {

struct Simd {
  using Vector = float;
  static constexpr std::int64_t kWidth = 1;
  static constexpr int kMostPairs = 8;  // of vectors that registers hold beside what is added to them

  // Holds the processor to reading the value before it does what stands behind.
  static void read_before_what_follows(Vector) {}
  static Vector splat(float value) { return value; }
  template <typename T>
  static Vector load(const T* from) {
    return to_float(*from);
  }
  // The cursor must not split a byte where vectors hold more than one number.
  static Vector load(Int4Cursor from) { return to_float(from); }
  // The codes of kWidth bytes of int4: of the low halves, and of the high ones.
  static void load_nibbles(const std::uint8_t* from, Vector* low, Vector* high) {
    *low = to_float(Int4Cursor{from, 0});
    *high = to_float(Int4Cursor{from, 1});
  }
  // Two vectors seen as one of 2*kWidth numbers: its even numbers into `a` and its odd ones into `b`, and back.
  static void separate(Vector*, Vector*) {}
  static void interleave(Vector*, Vector*) {}
  template <typename T>
  static void store(T* to, Vector value) {
    from_float(value, to);
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
  static Vector add(Vector a, Vector b) { return a + b; }
  static Vector divide(Vector a, Vector b) { return a / b; }
  // 2*kWidth numbers as they lie, or the first `count` of them and zeros; and sums[i] + a[2i] b[2i] + a[2i+1] b[2i+1].
  struct Raw {
    BFloat16 numbers[2];
  };
  static Raw load_raw(const BFloat16* from) { return {{from[0], from[1]}}; }
  static Raw load_raw(const BFloat16* from, std::int64_t) { return {{from[0], {0}}}; }
  static Vector add_products(Vector sums, Raw a, Raw b) {
    return sums + to_float(a.numbers[0]) * to_float(b.numbers[0]) + to_float(a.numbers[1]) * to_float(b.numbers[1]);
  }
  static float sum(Vector value) { return value; }
  // The sums of four vectors, side by side.
  static void store_four_sums(const Vector* four, float* to) {
    for (int i = 0; i < 4; ++i) to[i] = four[i];
  }
  static float largest(Vector value) { return value; }
  // 2^n, where the lowest bits of each number are n, from -126 to 127.
  static Vector power_of_two(Vector value) { return from_bits((to_bits(value) + 127) << 23); }
  // NaN becomes +infinity, so that comparisons order every lane.
  static Vector ordered(Vector value) { return value == value ? value : __builtin_inff(); }
  // The scores of the lanes set, side by side, and their positions; kWidth places of both may be written.
  static void store_lanes(Vector scores, std::uint32_t position, std::uint32_t, float* to, std::uint32_t* positions) {
    *to = scores;
    *positions = position;
  }
  // The lanes set of kWidth scores and positions in memory, side by side, at places that may be the same or before.
  static void move_lanes(const float* scores, const std::uint32_t* positions, std::uint32_t, float* to,
                         std::uint32_t* positions_to) {
    *to = *scores;
    *positions_to = *positions;
  }
  static Vector larger(Vector a, Vector b) { return a > b ? a : b; }
  static Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
  // One more where a > b, or where it is not less.
  static Vector count_greater(Vector counts, Vector a, Vector b) { return counts + (a > b ? 1.0f : 0.0f); }
  static Vector count_not_less(Vector counts, Vector a, Vector b) { return counts + (a >= b ? 1.0f : 0.0f); }
  // One more in the lanes after `lane` where a = b.
  static Vector count_equal_after(Vector counts, Vector, Vector, std::int64_t) { return counts; }
  // One bit a lane: a > b.
  static std::uint32_t greater(Vector a, Vector b) { return a > b ? 1u : 0u; }
};

}  // namespace
}  // namespace ultramem
