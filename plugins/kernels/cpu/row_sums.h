// Sums of weighted rows, for a stretch of columns.
//
// A row's first line is read and only then what lies some rows on is asked for: requests that find all of the core's
// buffers taken hold up the reads behind them. benchmarks/NOTES.md, Lookup, has the figures.
#pragma once

#include <cstdint>

#include "row_group.h"

namespace ultramem {
namespace {

// Rows [first, last) of a group, which go to the same sums.
struct Run {
  std::int64_t first;
  std::int64_t last;
};

// The columns of a group's rows from one of them on, and what they are multiplied by.
template <typename V>
struct Stretch {
  const RowGroup& group;
  const float* weights;
  std::int64_t column;
  std::int64_t ahead;          // how many places on the rows are that are asked for
  const float* const* scales;  // to be asked for beside them

  const char* row(std::int64_t i) const { return group.data[i] + Stored<V>::offset(column); }
};

// sums[c] += weight * value over the run's rows, for kPairs pairs of vectors.
template <typename V, int kPairs, bool kSplit>
void add_tile(const Stretch<V>& from, Run run, float* sums) {
  constexpr std::int64_t kPair = 2 * Simd::kWidth, kBytes = Stored<V>::offset(kPair);
  Pair tile[kPairs];
#pragma GCC unroll 8
  for (int v = 0; v < kPairs; ++v) tile[v] = as_stored<V>(load_sums(sums + v * kPair));
  for (std::int64_t i = run.first; i < run.last; ++i) {
    const char *row = from.row(i), *later = from.row(i + from.ahead);
    const Vector weight = Simd::splat(from.weights[i]);
    Simd::read_before_what_follows(load_pair(Stored<V>::at(row, 0)).first);
    prefetch<kPairs * kBytes, kSplit>(later);
#pragma GCC unroll 8
    for (int v = 0; v < kPairs; ++v) {
      const Pair values = load_pair(Stored<V>::at(row, v * kPair));
      tile[v] = {Simd::multiply_add(weight, values.first, tile[v].first),
                 Simd::multiply_add(weight, values.second, tile[v].second)};
    }
    if constexpr (kCoded<V>) __builtin_prefetch(from.scales[i]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kPairs; ++v) store_sums(as_columns<V>(tile[v]), sums + v * kPair);
}

// The same for kRows rows from the first on, over any number of pairs.
template <typename V, int kRows>
void add_rows(const Stretch<V>& from, std::int64_t first, std::int64_t pairs, float* sums) {
  constexpr std::int64_t kPair = 2 * Simd::kWidth, kBytes = Stored<V>::offset(kPair);
  constexpr std::int64_t kPairsOfLine = kBytes < kLine ? kLine / kBytes : 1;
  const char *row[kRows], *later[kRows];
  Vector weight[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    row[r] = from.row(first + r);
    later[r] = from.row(first + r + from.ahead);
    weight[r] = Simd::splat(from.weights[first + r]);
    if constexpr (kCoded<V>) __builtin_prefetch(from.scales[first + r]);
  }
  for (std::int64_t v = 0; v < pairs; ++v) {
    Pair sum = as_stored<V>(load_sums(sums + v * kPair));
    if (v % kPairsOfLine == 0) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) prefetch<kBytes, false>(later[r] + v * kBytes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Pair values = load_pair(Stored<V>::at(row[r], v * kPair));
      sum = {Simd::multiply_add(weight[r], values.first, sum.first),
             Simd::multiply_add(weight[r], values.second, sum.second)};
    }
    store_sums(as_columns<V>(sum), sums + v * kPair);
  }
}

// The same for fewer columns than a pair of vectors, or columns that begin within a byte.
template <typename V>
void add_singles(const Stretch<V>& from, Run run, std::int64_t count, float* sums) {
  for (std::int64_t i = run.first; i < run.last; ++i) {
    add_scaled(from.weights[i], Stored<V>::at(from.group.data[i], from.column), sums, count);
    prefetch(from.row(i + from.ahead), Stored<V>::bytes(count));
  }
}

}  // namespace
}  // namespace ultramem
