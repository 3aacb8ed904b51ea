// Products of rows with a vector of floats, which lies in the order that load_pair gives, zeros behind it up to whole
// pairs of vectors.
//
// Rows of few pairs are multiplied one after another, without a loop and a line read before others are asked for, as in
// row_sums.h; longer ones four at once. benchmarks/NOTES.md, Gate, has the figures.
#pragma once

#include <algorithm>
#include <cstdint>

#include "row_group.h"

namespace ultramem {
namespace {

// The columns of a group's rows from one of them on, of which as many are asked for some places on.
struct Columns {
  const RowGroup& group;
  std::int64_t offset;  // bytes
  std::int64_t count;
  std::int64_t ahead;
  const float* const* scales;  // to be asked for beside them

  const char* row(std::int64_t i) const { return group.data[i] + offset; }
  const char* later(std::int64_t i) const { return row(i + ahead); }
};

inline void add_product(Pair values, Pair by, Pair* sum) {
  *sum = {Simd::multiply_add(values.first, by.first, sum->first),
          Simd::multiply_add(values.second, by.second, sum->second)};
}

constexpr std::int64_t kTogether = 4;

// Single numbers gain nothing from it.
constexpr int kMostPairsOfShortRow = Simd::kWidth > 1 ? 16 : 0;

// to[i] = the sum of row_i[c] * x[c], for i in [first, last), over exactly kPairs pairs. Up to three numbers behind
// to[last - 1] are written too.
template <typename V, int kPairs>
void multiply_short_rows(const Columns& from, std::int64_t first, std::int64_t last, const float* x, float* to) {
  constexpr std::int64_t kPair = 2 * Simd::kWidth;
  for (std::int64_t i = first; i < last; i += kTogether) {
    Vector sums[kTogether] = {};
    for (std::int64_t r = 0; r < std::min(kTogether, last - i); ++r) {
      const char* row = from.row(i + r);
      Simd::read_before_what_follows(load_pair(Stored<V>::at(row, 0)).first);
      prefetch<kPairs * Stored<V>::offset(kPair), true>(from.later(i + r));
      Pair sum{};
#pragma GCC unroll 16
      for (int v = 0; v < kPairs; ++v)
        add_product(load_pair(Stored<V>::at(row, v * kPair)), load_sums(x + v * kPair), &sum);
      sums[r] = Simd::add(sum.first, sum.second);
      if constexpr (kCoded<V>) __builtin_prefetch(from.scales[i + r]);
    }
    Simd::store_four_sums(sums, to + i);
  }
}

// The same for kRows rows from i on, over any number of columns.
template <typename V, int kRows>
void multiply_rows(const Columns& from, std::int64_t i, const float* x, float* to) {
  constexpr std::int64_t kPair = 2 * Simd::kWidth, kBytes = Stored<V>::offset(kPair);
  constexpr std::int64_t kPairsOfLine = kBytes < kLine ? kLine / kBytes : 1;
  const char *row[kRows], *later[kRows];
  for (int r = 0; r < kRows; ++r) {
    row[r] = from.row(i + r);
    later[r] = from.later(i + r);
    if constexpr (kCoded<V>) __builtin_prefetch(from.scales[i + r]);
  }
  Pair sum[kRows] = {};
  const std::int64_t pairs = from.count / kPair, left = from.count % kPair;
  const auto multiply_pair = [&](std::int64_t v) {
    const Pair by = load_sums(x + v * kPair);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) add_product(load_pair(Stored<V>::at(row[r], v * kPair)), by, &sum[r]);
  };
  std::int64_t v = 0;
  for (; v + kPairsOfLine <= pairs; v += kPairsOfLine) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) prefetch<kPairsOfLine * kBytes, false>(later[r] + v * kBytes);
    for (int p = 0; p < kPairsOfLine; ++p) multiply_pair(v + p);
  }
  if (const std::int64_t rest = (pairs - v) * kBytes + Stored<V>::bytes(left); rest > 0) {
    for (int r = 0; r < kRows; ++r) prefetch(later[r] + v * kBytes, rest);
  }
  for (; v < pairs; ++v) multiply_pair(v);
  for (int r = 0; r < kRows && left > 0; ++r) {
    add_product(load_partial_pair(Stored<V>::at(row[r], pairs * kPair), left), load_sums(x + pairs * kPair), &sum[r]);
  }
  Vector sums[kTogether] = {};
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = Simd::add(sum[r].first, sum[r].second);
  Simd::store_four_sums(sums, to + i);
}

// The same for rows of any length. A row's sum is the same whichever rows stand beside it.
template <typename V, int kPairs = kMostPairsOfShortRow>
void multiply_run(const Columns& from, std::int64_t first, std::int64_t last, const float* x, float* to) {
  constexpr std::int64_t kCount = kPairs * 2 * Simd::kWidth, kMostBytes = 1024;
  if constexpr (kPairs > 0) {
    if constexpr (Stored<V>::offset(kCount) <= kMostBytes) {
      if (from.count == kCount) return multiply_short_rows<V, kPairs>(from, first, last, x, to);
    }
    multiply_run<V, kPairs - 1>(from, first, last, x, to);
  } else {
    for (; first + kTogether <= last; first += kTogether) multiply_rows<V, kTogether>(from, first, x, to);
    for (; first < last; ++first) multiply_rows<V, 1>(from, first, x, to);
  }
}

}  // namespace
}  // namespace ultramem
