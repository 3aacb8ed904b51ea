// SparseLookup on one instruction set.
//
//   table [N, D] of V; addresses [tokens, K]; scores [tokens, K, M] of T; output [tokens, E*D] of T
//   scratch [E, columns] of float where T is half precision: the sums before they are rounded once
//
// A tile of columns is summed in registers over all of a token's rows, then the next tile. Where that would crowd the
// sets of the first-level cache, rows are summed over all columns, eight at a time, to sums in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>

#include "row_sums.h"

namespace ultramem {
namespace {

template <typename V, typename T>
class SparseLookup {
 public:
  SparseLookup(const UltramemSparseLookup& problem, UltramemRange columns, void* scratch)
      : p_(problem),
        columns_(columns),
        rows_(problem.table, problem.addresses, problem.blocks > 1),
        scratch_(static_cast<float*>(scratch)) {}

  void run(UltramemRange tokens) {
    std::int64_t at = tokens.begin * p_.slots;
    const std::int64_t end = tokens.end * p_.slots;
    read(*now_, at, end);
    request_first();
    for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
      begin_sums(token);
      for (const std::int64_t token_end = at + p_.slots; at < token_end; std::swap(now_, next_)) {
        at += now_->count;
        read(*next_, at, end);
        add_group();
      }
      finish_sums(token);
    }
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<T, float>;
  static constexpr std::int64_t kPair = 2 * Simd::kWidth;

  // Part of one token's rows: all of them, or nearly equal parts.
  void read(RowGroup& group, std::int64_t at, std::int64_t end) const {
    group.count = 0;
    if (at >= end) return;
    const std::int64_t parts = (p_.slots + RowGroup::kMost - 1) / RowGroup::kMost, done = at % p_.slots;
    const std::int64_t part = (done * parts + p_.slots - 1) / p_.slots;
    rows_.read(group, at, at - done + p_.slots * (part + 1) / parts);
    if (p_.blocks > 1) order_by_block(group, p_.blocks);
  }

  T* output(std::int64_t token, std::int64_t block) const {
    return static_cast<T*>(p_.output) + (token * p_.blocks + block) * p_.table.width + columns_.begin;
  }

  void begin_sums(std::int64_t token) {
    const std::int64_t count = columns_.end - columns_.begin;
    if constexpr (kInPlace) {
      sums_ = output(token, 0);
      stride_ = p_.table.width;
    } else {
      sums_ = scratch_;
      stride_ = count;
    }
    for (std::int64_t block = 0; block < p_.blocks; ++block) {
      std::memset(sums_ + block * stride_, 0, static_cast<std::size_t>(count) * sizeof(float));
    }
  }

  void finish_sums(std::int64_t token) const {
    if constexpr (!kInPlace) {
      for (std::int64_t block = 0; block < p_.blocks; ++block) {
        convert(sums_ + block * stride_, output(token, block), columns_.end - columns_.begin);
      }
    }
  }

  // Columns [begin, end) that are summed in one go, so many pairs of vectors: 0 where there are too few columns or they
  // begin within a byte, and more than registers hold where tiles would crowd the cache.
  struct Columns {
    std::int64_t begin;
    std::int64_t end;
    std::int64_t pairs;
  };

  // Each core's columns have weights of their own.
  Columns columns_from(std::int64_t begin) const {
    const std::int64_t core_width = p_.table.width / p_.cores, core_end = (begin / core_width + 1) * core_width;
    const std::int64_t end = core_end < columns_.end ? core_end : columns_.end;
    const std::int64_t pairs = splits_byte(begin) ? 0 : (end - begin) / kPair;
    if (pairs == 0) return {begin, end, 0};
    const std::int64_t tiles = (pairs + Simd::kMostPairs - 1) / Simd::kMostPairs, each = (pairs + tiles - 1) / tiles;
    const Columns tile = {begin, begin + each * kPair, each};
    return crowds_sets(tile) ? Columns{begin, begin + pairs * kPair, pairs} : tile;
  }

  // Whether more of the lines under way would share a set of the first-level cache than it has room for, as rows of
  // 4096 bytes do. Narrower vectors make more visits of a row, and bear fewer.
  bool crowds_sets(const Columns& tile) const {
    constexpr std::int64_t kSetsBytes = 4096, kWays = Simd::kWidth < 16 ? 7 : 8;
    const std::int64_t apart = std::gcd(rows_.row_bytes(), kSetsBytes);
    return tile.pairs > 0 && rows_ahead(bytes(tile), RowGroup::kMost) * apart > kWays * kSetsBytes;
  }

  // Rows start with a byte, so that it is alike in all of them. Cores of an odd width alone bring it about.
  static bool splits_byte(std::int64_t column) { return std::is_same_v<V, Int4> && column % 2 != 0; }

  void add_group() {
    std::int64_t weighted = -1;
    for (std::int64_t column = columns_.begin; column < columns_.end;) {
      const Columns columns = columns_from(column);
      const std::int64_t core = column * p_.cores / p_.table.width;
      if (core != weighted) read_weights(core);
      weighted = core;
      add_columns(columns);
      column = columns.end;
    }
  }

  void read_weights(std::int64_t core) {
    const T* scores = static_cast<const T*>(p_.scores) + core;
    for (std::int64_t i = 0; i < now_->count; ++i) {
      weights_[i] = to_float(scores[now_->position[i] * p_.cores]) * rows_.scale(*now_, i);
    }
  }

  void add_columns(const Columns& columns) {
    const std::int64_t ahead = rows_ahead(bytes(columns), now_->count);
    extend(columns, ahead);
    const RowGroup& scaled = columns.begin == columns_.begin ? *next_ : *now_;
    const Stretch<V> from = {*now_, weights_, columns.begin, ahead, scaled.scale};
    if (p_.blocks == 1) return add_run(from, columns, {0, now_->count}, sums_ + columns.begin - columns_.begin);
    for (Run run{0, 0}; run.first < now_->count; run.first = run.last) {
      const std::int64_t block = now_->block[run.first];
      while (run.last < now_->count && now_->block[run.last] == block) ++run.last;
      add_run(from, columns, run, sums_ + block * stride_ + columns.begin - columns_.begin);
    }
  }

  static std::int64_t bytes(const Columns& columns) { return Stored<V>::bytes(columns.end - columns.begin); }

  void request_first() const {
    if (now_->count == 0 || columns_.begin == columns_.end) return;
    const Columns columns = columns_from(columns_.begin);
    for (std::int64_t i = 0; i < rows_ahead(bytes(columns), now_->count); ++i) {
      prefetch(now_->data[i] + Stored<V>::offset(columns.begin), bytes(columns));
    }
    if constexpr (kCoded<V>) {
      for (std::int64_t i = 0; i < now_->count; ++i) __builtin_prefetch(now_->scale[i]);
    }
  }

  // Puts behind the group's rows what is read after these columns of them: its rows' next columns, or the next group's
  // rows. Where nothing is, a row that is in the cache already.
  void extend(const Columns& columns, std::int64_t count) {
    const bool more = columns.end < columns_.end;
    const RowGroup& then = more ? *now_ : *next_;
    const std::int64_t on = Stored<V>::offset(more ? columns.end : columns_.begin) - Stored<V>::offset(columns.begin);
    const char** behind = now_->data + now_->count;
    for (std::int64_t i = 0; i < count; ++i) behind[i] = i < then.count ? then.data[i] + on : behind[-1];
  }

  void add_run(const Stretch<V>& from, const Columns& columns, Run run, float* sums) {
    if (columns.pairs == 0) return add_singles(from, run, columns.end - columns.begin, sums);
    if (columns.pairs <= Simd::kMostPairs) {
      return rows_.splits_lines() ? add_tile_of<Simd::kMostPairs, true>(columns.pairs, from, run, sums)
                                  : add_tile_of<Simd::kMostPairs, false>(columns.pairs, from, run, sums);
    }
    constexpr int kTogether = 8;
    for (; run.first + kTogether <= run.last; run.first += kTogether) {
      add_rows<V, kTogether>(from, run.first, columns.pairs, sums);
    }
    for (; run.first < run.last; ++run.first) add_rows<V, 1>(from, run.first, columns.pairs, sums);
  }

  template <int kPairs, bool kSplit>
  static void add_tile_of(std::int64_t pairs, const Stretch<V>& from, Run run, float* sums) {
    if (pairs == kPairs) return add_tile<V, kPairs, kSplit>(from, run, sums);
    if constexpr (kPairs > 1) add_tile_of<kPairs - 1, kSplit>(pairs, from, run, sums);
  }

  const UltramemSparseLookup& p_;
  UltramemRange columns_;
  TableRows<V> rows_;
  float* scratch_;
  float* sums_ = nullptr;  // of the token: block b's columns are at sums_ + b * stride_
  std::int64_t stride_ = 0;
  RowGroup groups_[2];
  RowGroup* now_ = &groups_[0];
  RowGroup* next_ = &groups_[1];
  float weights_[RowGroup::kMost];  // of the rows of this group
};

template <typename V, typename T>
UltramemStatus sparse_lookup(const UltramemSparseLookup& problem, UltramemRange tokens, UltramemRange columns,
                             void* scratch) {
  const std::int64_t begin = tokens.begin * problem.slots, end = tokens.end * problem.slots;
  const std::int64_t limit = problem.blocks * problem.table.rows;
  const UltramemStatus status = check_addresses(problem.addresses, begin, end, problem.slots, limit);
  if (status.code == ULTRAMEM_OK) SparseLookup<V, T>(problem, columns, scratch).run(tokens);
  return status;
}

template <typename T>
UltramemStatus sparse_lookup_of(const UltramemSparseLookup& problem, UltramemRange tokens, UltramemRange columns,
                                void* scratch) {
  switch (problem.table.type) {
    case ULTRAMEM_FLOAT32:
      return sparse_lookup<float, T>(problem, tokens, columns, scratch);
    case ULTRAMEM_FLOAT16:
      return sparse_lookup<Half, T>(problem, tokens, columns, scratch);
    case ULTRAMEM_BFLOAT16:
      return sparse_lookup<BFloat16, T>(problem, tokens, columns, scratch);
    case ULTRAMEM_INT8:
      return sparse_lookup<Int8, T>(problem, tokens, columns, scratch);
    case ULTRAMEM_INT4:
      return sparse_lookup<Int4, T>(problem, tokens, columns, scratch);
    case ULTRAMEM_FLOAT8_E4M3:
      return sparse_lookup<Float8, T>(problem, tokens, columns, scratch);
  }
  return {ULTRAMEM_UNSUPPORTED_TYPE, 0, 0, 0};
}

inline UltramemStatus sparse_lookup_any(const UltramemSparseLookup& problem, UltramemRange tokens,
                                        UltramemRange columns, void* scratch) {
  return problem.type == ULTRAMEM_FLOAT32 ? sparse_lookup_of<float>(problem, tokens, columns, scratch)
                                          : sparse_lookup_of<Half>(problem, tokens, columns, scratch);
}

}  // namespace
}  // namespace ultramem
