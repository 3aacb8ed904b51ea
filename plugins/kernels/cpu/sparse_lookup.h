// SparseLookup on one instruction set.
//
//   table [N, D] of V; addresses [tokens, K]; scores [tokens, K, M] of T; output [tokens, E*D] of T
//   scratch [E, columns] of float where T is half precision: the sums before they are rounded once
//
// The sums of a token stay in the first-level cache while its rows stream past, each row read once, front to back.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "table_rows.h"

namespace ultramem {
namespace {

// The sums of one token's columns: block p's lie at data + p*stride.
struct TokenSums {
  float* data;
  std::int64_t stride;
};

// Adds one row's columns, each core's stretch scaled by the core's own score and the row's scale.
template <typename Cursor, typename T>
void add_row(const UltramemSparseLookup& problem, Cursor row, float scale, const T* core_scores, UltramemRange columns,
             float* sums) {
  const std::int64_t core_width = problem.table.width / problem.cores;
  std::int64_t column = columns.begin;
  while (column < columns.end) {
    const std::int64_t core = column / core_width;
    const std::int64_t core_end = (core + 1) * core_width;
    const std::int64_t end = core_end < columns.end ? core_end : columns.end;
    const std::int64_t at = column - columns.begin;
    add_scaled(scale * to_float(core_scores[core]), row + at, sums + at, end - column);
    column = end;
  }
}

template <typename V, typename T>
void sum_token(const UltramemSparseLookup& problem, const TableRows<V>& rows, std::int64_t token, UltramemRange columns,
               TokenSums sums) {
  const auto* scores = static_cast<const T*>(problem.scores);
  const auto bytes = static_cast<std::size_t>(columns.end - columns.begin) * sizeof(float);
  for (std::int64_t p = 0; p < problem.blocks; ++p) std::memset(sums.data + p * sums.stride, 0, bytes);
  for (std::int64_t at = token * problem.slots; at < (token + 1) * problem.slots; ++at) {
    const auto row = rows.at(at);
    add_row(problem, row, rows.scale(at), scores + at * problem.cores, columns,
            sums.data + rows.block(at) * sums.stride);
  }
}

template <typename V, typename T>
UltramemStatus sparse_lookup(const UltramemSparseLookup& problem, UltramemRange tokens, UltramemRange columns,
                             void* scratch) {
  const std::int64_t begin = tokens.begin * problem.slots, end = tokens.end * problem.slots;
  const std::int64_t limit = problem.blocks * problem.table.rows;
  const UltramemStatus status = check_addresses(problem.addresses, begin, end, problem.slots, limit);
  if (status.code != ULTRAMEM_OK) return status;

  const TableRows<V> rows(problem.table, problem.addresses, end, columns);
  const std::int64_t width = problem.table.width, count = columns.end - columns.begin;
  rows.start(begin);
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    T* output = static_cast<T*>(problem.output) + token * problem.blocks * width + columns.begin;
    if constexpr (std::is_same_v<T, float>) {
      sum_token<V, T>(problem, rows, token, columns, {output, width});
    } else {
      const TokenSums sums{static_cast<float*>(scratch), count};
      sum_token<V, T>(problem, rows, token, columns, sums);
      for (std::int64_t p = 0; p < problem.blocks; ++p) convert(sums.data + p * count, output + p * width, count);
    }
  }
  return {ULTRAMEM_OK, 0, 0, 0};
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
