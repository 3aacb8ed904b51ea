// SparseGate on one instruction set.
//
//   table [N, P] of V ([N, 2P] for swiglu); addresses [tokens, K]; x [tokens, P] of T; gate [tokens, K] of T
//   scratch [P] of float where T is half precision: the token's x
#pragma once

#include <math.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "row_group.h"

namespace ultramem {
namespace {

// expf and erff, not std::exp and std::erf: those are inline functions that the linker would share (see ../number.h).
inline float silu(float value) { return value / (1.0f + expf(-value)); }

inline float gelu(float value) {
  constexpr float kInverseSqrt2 = 0.70710678118654752f;
  return 0.5f * value * (1.0f + erff(value * kInverseSqrt2));
}

template <typename Cursor>
float gate_of(UltramemActivation activation, Cursor row, float scale, const float* x, std::int64_t width) {
  const float first = scale * dot(row, x, width);
  switch (activation) {
    case ULTRAMEM_GELU:
      return gelu(first);
    case ULTRAMEM_SILU:
      return silu(first);
    case ULTRAMEM_SWIGLU:
      return silu(first) * (scale * dot(row + width, x, width));
    case ULTRAMEM_NONE:
      break;
  }
  return first;
}

// The token's x as float: where it lies already, or converted into the scratch.
template <typename T>
const float* x_of(const UltramemSparseGate& problem, std::int64_t token, void* scratch) {
  const T* x = static_cast<const T*>(problem.x) + token * problem.x_width;
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    convert(x, static_cast<float*>(scratch), problem.x_width);
    return static_cast<const float*>(scratch);
  }
}

template <typename V, typename T>
UltramemStatus sparse_gate(const UltramemSparseGate& problem, UltramemRange pairs, void* scratch) {
  const std::int64_t limit = problem.table.rows > 0 ? INT64_MAX : 0;
  const UltramemStatus status = check_addresses(problem.addresses, pairs.begin, pairs.end, problem.slots, limit);
  if (status.code != ULTRAMEM_OK) return status;

  const TableRows<V> rows(problem.table, problem.addresses, {0, problem.table.width}, pairs.end - pairs.begin, true);
  RowGroup groups[2];
  RowGroup *now = &groups[0], *next = &groups[1];
  rows.read(*now, pairs.begin, pairs.end);
  for (std::int64_t i = 0; i < now->count; ++i) rows.request(*now, i, 0, problem.table.width);
  const float* x = nullptr;
  for (std::int64_t pair = pairs.begin; pair < pairs.end; std::swap(now, next)) {
    rows.read(*next, pair + now->count, pairs.end);
    for (std::int64_t i = now->count; i < next->count; ++i) rows.request(*next, i, 0, problem.table.width);
    for (std::int64_t i = 0; i < now->count; ++i, ++pair) {
      rows.request(*next, i, 0, problem.table.width);
      if (x == nullptr || pair % problem.slots == 0) x = x_of<T>(problem, pair / problem.slots, scratch);
      const std::int64_t row = now->row[i];
      const float gate = gate_of(problem.activation, rows.cursor(row, 0), rows.scale(row), x, problem.x_width);
      from_float(gate, static_cast<T*>(problem.gate) + pair);
    }
  }
  return {ULTRAMEM_OK, 0, 0, 0};
}

template <typename T>
UltramemStatus sparse_gate_of(const UltramemSparseGate& problem, UltramemRange pairs, void* scratch) {
  switch (problem.table.type) {
    case ULTRAMEM_FLOAT32:
      return sparse_gate<float, T>(problem, pairs, scratch);
    case ULTRAMEM_FLOAT16:
      return sparse_gate<Half, T>(problem, pairs, scratch);
    case ULTRAMEM_BFLOAT16:
      return sparse_gate<BFloat16, T>(problem, pairs, scratch);
    case ULTRAMEM_INT8:
      return sparse_gate<Int8, T>(problem, pairs, scratch);
    case ULTRAMEM_INT4:
      return sparse_gate<Int4, T>(problem, pairs, scratch);
    case ULTRAMEM_FLOAT8_E4M3:
      return sparse_gate<Float8, T>(problem, pairs, scratch);
  }
  return {ULTRAMEM_UNSUPPORTED_TYPE, 0, 0, 0};
}

inline UltramemStatus sparse_gate_any(const UltramemSparseGate& problem, UltramemRange pairs, void* scratch) {
  return problem.type == ULTRAMEM_FLOAT32 ? sparse_gate_of<float>(problem, pairs, scratch)
                                          : sparse_gate_of<Half>(problem, pairs, scratch);
}

}  // namespace
}  // namespace ultramem
