// Loops over runs of numbers of any storage type, written once for every instruction set. Include after one simd_*.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "int4.h"

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

// Numbers 0 .. 2*kWidth - 1 of a run. Those of int4 come as they are stored: the even ones, then the odd ones.
struct Pair {
  Vector first;
  Vector second;
};

template <typename T>
Pair load_pair(const T* from) {
  return {Simd::load(from), Simd::load(from + Simd::kWidth)};
}

// The cursor must not split a byte.
inline Pair load_pair(Int4Cursor from) {
  Pair pair{};
  Simd::load_nibbles(from.byte(), &pair.first, &pair.second);
  return pair;
}

inline Pair load_sums(const float* sums) { return {Simd::load(sums), Simd::load(sums + Simd::kWidth)}; }

inline void store_sums(Pair pair, float* sums) {
  Simd::store(sums, pair.first);
  Simd::store(sums + Simd::kWidth, pair.second);
}

// From the order of columns to the order in which load_pair gives numbers of V, and back.
template <typename V>
Pair as_stored(Pair pair) {
  if constexpr (std::is_same_v<V, Int4>) Simd::separate(&pair.first, &pair.second);
  return pair;
}

template <typename V>
Pair as_columns(Pair pair) {
  if constexpr (std::is_same_v<V, Int4>) Simd::interleave(&pair.first, &pair.second);
  return pair;
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

// to[i] = from[i] for i in [0, count), between storage types.
template <typename From, typename To>
void convert(const From* from, To* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + Simd::kWidth <= count; i += Simd::kWidth) Simd::store(to + i, Simd::load(from + i));
  if (i < count) store_partial(to + i, load_partial(from + i, count - i), count - i);
}

constexpr std::int64_t kLine = 64;

// Asks for the bytes [from, from + bytes) to be brought into the cache; never faults.
inline void prefetch(const void* from, std::int64_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(from), end = begin + static_cast<std::uintptr_t>(bytes);
  constexpr auto kStep = static_cast<std::uintptr_t>(kLine);
  for (std::uintptr_t line = begin / kStep * kStep; line < end; line += kStep) {
    __builtin_prefetch(reinterpret_cast<const void*>(line));
  }
  // GCC takes a function that only prefetches for one without effect, and drops the calls.
  asm volatile("");
}

// The same for as many bytes as are known when this is compiled, without a question; kSplit unless they begin with a
// line.
template <std::int64_t kBytes, bool kSplit>
void prefetch(const char* from) {
#pragma GCC unroll 16
  for (std::int64_t at = 0; at < kBytes; at += kLine) __builtin_prefetch(from + at);
  if constexpr (kSplit) __builtin_prefetch(from + kBytes - 1);
  asm volatile("");
}

}  // namespace
}  // namespace ultramem
