// SparseLookup on one instruction set.
//
//   table [N, D] of V; addresses [tokens, K]; scores [tokens, K, M] of T; output [tokens, E*D] of T
//   scratch [E, columns] of float where T is half precision: the sums before they are rounded once
//
// Rows come in groups (row_group.h). A tile of columns is summed over a whole group in registers: sums kept in memory
// would have each row wait for the stores of the one before, and those for its loads.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "row_group.h"

namespace ultramem {
namespace {

// Rows [first, last) of a group, which go to the same sums.
struct Run {
  std::int64_t first;
  std::int64_t last;
};

// Orders the group by block, and by position within a block, so that sums are added in the same order however the work
// is cut. Groups are small and few rows are out of place.
inline void order_by_block(RowGroup& group) {
  for (std::int64_t i = 1; i < group.count; ++i) {
    const std::int64_t position = group.position[i], row = group.row[i], block = group.block[i];
    std::int64_t to = i;
    for (; to > 0 && group.block[to - 1] > block; --to) {
      group.position[to] = group.position[to - 1];
      group.row[to] = group.row[to - 1];
      group.block[to] = group.block[to - 1];
    }
    group.position[to] = position;
    group.row[to] = row;
    group.block[to] = block;
  }
}

template <typename V, typename T>
class SparseLookup {
 public:
  SparseLookup(const UltramemSparseLookup& problem, UltramemRange columns, void* scratch)
      : p_(problem),
        columns_(columns),
        rows_(problem.table, problem.addresses, columns, problem.slots, problem.blocks > 1),
        scratch_(static_cast<float*>(scratch)) {}

  void run(UltramemRange tokens) {
    std::int64_t at = tokens.begin * p_.slots;
    const std::int64_t end = tokens.end * p_.slots;
    start(at, end);
    for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
      begin_sums(token);
      for (const std::int64_t token_end = at + p_.slots; at < token_end;) {
        at += now_->count;
        read(*next_, at, end);
        if (p_.blocks > 1) order_by_block(*now_);
        add_group();
        RowGroup* used = now_;
        now_ = next_;
        next_ = used;
      }
      finish_sums(token);
    }
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<T, float>;
  static constexpr int kMostPairs = Simd::kMostPairs;

  void start(std::int64_t at, std::int64_t end) {
    read(*now_, at, end);
    for (std::int64_t i = 0; i < now_->count; ++i)
      rows_.request(*now_, i, columns_.begin, columns_.end - columns_.begin);
  }

  // A group stays within one token.
  void read(RowGroup& group, std::int64_t at, std::int64_t end) const {
    group.count = 0;
    if (at < end) rows_.read(group, at, at + p_.slots - at % p_.slots);
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

  // Rows start with a byte, so that it is alike in all of them. Cores of an odd width alone bring it about.
  static bool splits_byte(std::int64_t column) { return std::is_same_v<V, Int4> && column % 2 != 0; }

  // Each core's stretch of columns has weights of its own.
  void add_group() {
    const std::int64_t core_width = p_.table.width / p_.cores;
    for (std::int64_t column = columns_.begin; column < columns_.end;) {
      const std::int64_t core = column / core_width, core_end = (core + 1) * core_width;
      const std::int64_t end = core_end < columns_.end ? core_end : columns_.end;
      read_weights(core);
      if (!splits_byte(column)) column = add_tiles<kMostPairs>(column, end);
      if (column < end) add_singles(column, end);
      column = end;
    }
  }

  void read_weights(std::int64_t core) {
    for (std::int64_t i = 0; i < now_->count; ++i) {
      const float score = to_float(static_cast<const T*>(p_.scores)[now_->position[i] * p_.cores + core]);
      weights_[i] = score * rows_.scale(now_->row[i]);
    }
  }

  // Tiles of kPairs pairs of vectors as long as they fit, then of half as many; returns the first column left.
  template <int kPairs>
  std::int64_t add_tiles(std::int64_t column, std::int64_t end) {
    constexpr std::int64_t kTile = 2 * kPairs * Simd::kWidth;
    for (; column + kTile <= end; column += kTile) {
      for_each_run(column, kTile, [&](Run run, float* sums) { add_tile<kPairs>(run, column, sums); });
    }
    if constexpr (kPairs > 1) return add_tiles<kPairs / 2>(column, end);
    return column;
  }

  // body(run, sums) for the rows of each block, and requests for the same columns of the next group.
  template <typename Body>
  void for_each_run(std::int64_t column, std::int64_t count, const Body& body) {
    if (p_.blocks == 1) {
      body(Run{0, now_->count}, sums_ + column - columns_.begin);
    }
    for (Run run{0, 0}; p_.blocks > 1 && run.first < now_->count; run.first = run.last) {
      const std::int64_t block = now_->block[run.first];
      while (run.last < now_->count && now_->block[run.last] == block) ++run.last;
      body(run, sums_ + block * stride_ + column - columns_.begin);
    }
    for (std::int64_t i = now_->count; i < next_->count; ++i) rows_.request(*next_, i, column, count);
  }

  template <int kPairs>
  void add_tile(Run run, std::int64_t column, float* sums) {
    constexpr std::int64_t kPair = 2 * Simd::kWidth;
    Pair tile[kPairs];
#pragma GCC unroll 8
    for (int v = 0; v < kPairs; ++v) tile[v] = as_stored<V>(load_sums(sums + v * kPair));
    for (std::int64_t i = run.first; i < run.last; ++i) {
      const auto row = rows_.cursor(now_->row[i], column);
      const Vector weight = Simd::splat(weights_[i]);
#pragma GCC unroll 8
      for (int v = 0; v < kPairs; ++v) {
        const Pair values = load_pair(row + v * kPair);
        tile[v] = {Simd::multiply_add(weight, values.first, tile[v].first),
                   Simd::multiply_add(weight, values.second, tile[v].second)};
      }
      rows_.template request<kPairs * kPair>(*next_, i, column);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kPairs; ++v) store_sums(as_columns<V>(tile[v]), sums + v * kPair);
  }

  // Fewer columns than a pair of vectors, or columns that start within a byte.
  void add_singles(std::int64_t column, std::int64_t end) {
    for_each_run(column, end - column, [&](Run run, float* sums) {
      for (std::int64_t i = run.first; i < run.last; ++i) {
        add_scaled(weights_[i], rows_.cursor(now_->row[i], column), sums, end - column);
        rows_.request(*next_, i, column, end - column);
      }
    });
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
