// Loops over runs of numbers of any storage type, written once for every instruction set. Include after one simd_*.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "number.h"

namespace ultramem {
namespace {

using Vector = Simd::Vector;

// The first `count` < kWidth numbers at `from`; the other lanes are 0. Reads nothing beyond them.
template <typename T>
Vector load_partial(const T* from, std::int64_t count) {
  T lanes[Simd::kWidth] = {};
  std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(T));
  return Simd::load(lanes);
}

inline Vector load_partial(Int4Cursor from, std::int64_t count) {
  float lanes[Simd::kWidth] = {};
  for (std::int64_t i = 0; i < count; ++i) lanes[i] = to_float(from + i);
  return Simd::load(lanes);
}

template <typename T>
Vector load_whole(const T* from) {
  return Simd::load(from);
}

inline Vector load_whole(Int4Cursor from) {
  return from.splits_byte() ? load_partial(from, Simd::kWidth) : Simd::load(from);
}

template <typename T>
void store_partial(T* to, Vector value, std::int64_t count) {
  T lanes[Simd::kWidth];
  Simd::store(lanes, value);
  std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

// sums[i] += scale * values[i] for i in [0, count); `values` is a pointer or an Int4Cursor
template <typename Values>
void add_scaled(float scale, Values values, float* sums, std::int64_t count) {
  const Vector scales = Simd::splat(scale);
  std::int64_t i = 0;
  for (; i + Simd::kWidth <= count; i += Simd::kWidth) {
    Simd::store(sums + i, Simd::multiply_add(scales, load_whole(values + i), Simd::load(sums + i)));
  }
  const std::int64_t left = count - i;
  if (left <= 0) return;
  const Vector sum = Simd::multiply_add(scales, load_partial(values + i, left), load_partial(sums + i, left));
  store_partial(sums + i, sum, left);
}

// Sum of a[i] * b[i] for i in [0, count); `a` is a pointer or an Int4Cursor. Four sums side by side hide the latency of
// one addition behind the others.
template <typename Values>
float dot(Values a, const float* b, std::int64_t count) {
  Vector sums[4] = {Simd::splat(0), Simd::splat(0), Simd::splat(0), Simd::splat(0)};
  std::int64_t i = 0;
  for (; i + 4 * Simd::kWidth <= count; i += 4 * Simd::kWidth) {
    for (std::int64_t s = 0; s < 4; ++s) {
      const std::int64_t at = i + s * Simd::kWidth;
      sums[s] = Simd::multiply_add(load_whole(a + at), Simd::load(b + at), sums[s]);
    }
  }
  for (; i + Simd::kWidth <= count; i += Simd::kWidth) {
    sums[0] = Simd::multiply_add(load_whole(a + i), Simd::load(b + i), sums[0]);
  }
  if (const std::int64_t left = count - i; left > 0) {
    sums[1] = Simd::multiply_add(load_partial(a + i, left), load_partial(b + i, left), sums[1]);
  }
  return Simd::sum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3])));
}

// to[i] = from[i] for i in [0, count), between storage types.
template <typename From, typename To>
void convert(const From* from, To* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + Simd::kWidth <= count; i += Simd::kWidth) Simd::store(to + i, Simd::load(from + i));
  if (i < count) store_partial(to + i, load_partial(from + i, count - i), count - i);
}

// Asks for the bytes [from, from + bytes) to be brought into the cache; never faults.
inline void prefetch(const void* from, std::int64_t bytes) {
  constexpr std::int64_t kLine = 64;
  for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const char*>(from) + at);
}

}  // namespace
}  // namespace ultramem
