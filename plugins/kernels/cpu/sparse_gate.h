// SparseGate on one instruction set.
//
//   table [N, P] of V ([N, 2P] for swiglu); addresses [tokens, K]; x [tokens, P] of T; gate [tokens, K] of T
//   scratch [P] of float where T is half precision: the token's x
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "row_group.h"

namespace ultramem {
namespace {

// expf and erff, not std::exp and std::erf: those are inline functions that the linker would share (see ../number.h).
inline float silu(float value) { return value / (1.0f + expf(-value)); }

inline float gelu(float value) {
  constexpr float kInverseSqrt2 = 0.70710678118654752f;
  return 0.5f * value * (1.0f + erff(value * kInverseSqrt2));
}

// Sum of row[i] * x[i] for i in [0, count), which asks for as many bytes from `later` on beside its own. Four sums side
// by side hide the latency of one addition behind the others.
template <typename V>
float dot(typename Stored<V>::Cursor row, const float* x, std::int64_t count, const char* later) {
  constexpr std::int64_t kStep = 4 * Simd::kWidth, kBytes = Stored<V>::offset(kStep);
  Vector sums[4] = {Simd::splat(0), Simd::splat(0), Simd::splat(0), Simd::splat(0)};
  std::int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    prefetch<kBytes, false>(later + Stored<V>::offset(i));
    for (std::int64_t s = 0; s < 4; ++s) {
      const std::int64_t at = i + s * Simd::kWidth;
      sums[s] = Simd::multiply_add(load_whole(row + at), Simd::load(x + at), sums[s]);
    }
  }
  if (i < count) prefetch(later + Stored<V>::offset(i), Stored<V>::bytes(count - i));
  for (; i + Simd::kWidth <= count; i += Simd::kWidth) {
    sums[0] = Simd::multiply_add(load_whole(row + i), Simd::load(x + i), sums[0]);
  }
  if (const std::int64_t left = count - i; left > 0) {
    sums[1] = Simd::multiply_add(load_partial(row + i, left), load_partial(x + i, left), sums[1]);
  }
  return Simd::sum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3])));
}

// The gate of one row; as much of another is asked for.
template <typename V>
float gate_of(const UltramemSparseGate& problem, const char* row, float scale, const float* x, const char* later) {
  const std::int64_t width = problem.x_width;
  const float first = scale * dot<V>(Stored<V>::at(row, 0), x, width, later);
  switch (problem.activation) {
    case ULTRAMEM_GELU:
      return gelu(first);
    case ULTRAMEM_SILU:
      return silu(first);
    case ULTRAMEM_SWIGLU:
      return silu(first) * (scale * dot<V>(Stored<V>::at(row, width), x, width, later + Stored<V>::offset(width)));
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

  const TableRows<V> rows(problem.table, problem.addresses, true);
  const std::int64_t ahead = rows_ahead(rows.row_bytes(), RowGroup::kMostAhead);
  RowGroup group;
  const float* x = nullptr;
  for (std::int64_t pair = pairs.begin; pair < pairs.end;) {
    const std::int64_t first = pair;
    rows.read(group, first, std::min(pairs.end, first + RowGroup::kMost));
    // The last rows of a group are the first of the next, but for the last of all.
    const std::int64_t end = first + group.count == pairs.end ? pairs.end : first + group.count - ahead;
    for (std::int64_t i = 0; first == pairs.begin && i < std::min(ahead, group.count); ++i) {
      prefetch(group.data[i], Stored<V>::bytes(problem.table.width));
    }
    for (; pair < end; ++pair) {
      if (x == nullptr || pair % problem.slots == 0) x = x_of<T>(problem, pair / problem.slots, scratch);
      const std::int64_t i = pair - first, later = std::min(i + ahead, group.count - 1);
      const float gate = gate_of<V>(problem, group.data[i], rows.scale(group, i), x, group.data[later]);
      if constexpr (kCoded<V>) __builtin_prefetch(group.scale[later]);
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
