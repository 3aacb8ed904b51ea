// Which problems have sizes that go together; the element types that a backend takes are its own.
#pragma once

#include <cstdint>
#include <limits>

#include "ultramem_kernels.h"

namespace ultramem {

inline bool is_sound(const UltramemTable& table) {
  if (table.rows < 0 || table.width < 0 || table.row_stride < table.width) return false;
  if (table.type == ULTRAMEM_INT4 && table.row_stride % 2 != 0) return false;
  return (table.scales != nullptr) == (table.type >= ULTRAMEM_INT8) || table.rows == 0;
}

inline bool is_sound(const UltramemSparseLookup& p) {
  if (!is_sound(p.table) || p.tokens < 0 || p.slots < 0 || p.cores < 1 || p.blocks < 1) return false;
  if (p.table.width % p.cores != 0) return false;
  return p.blocks <= std::numeric_limits<std::int64_t>::max() / (p.table.rows > 0 ? p.table.rows : 1);
}

inline bool is_sound(const UltramemSparseGate& p) {
  if (!is_sound(p.table) || p.tokens < 0 || p.slots < 0 || p.x_width < 0) return false;
  if (p.activation < ULTRAMEM_NONE || p.activation > ULTRAMEM_SWIGLU) return false;
  return p.table.width == (p.activation == ULTRAMEM_SWIGLU ? 2 * p.x_width : p.x_width);
}

inline bool is_sound(const UltramemTuckerTopK& p) {
  if (p.tokens < 0 || p.heads < 0 || p.rank < 1 || p.cores < 1 || p.k < 1) return false;
  if (p.n_row > ULTRAMEM_MOST_KEYS || p.n_col > ULTRAMEM_MOST_KEYS || p.k > ULTRAMEM_MOST_KEPT) return false;
  const std::int64_t k_row = p.k < p.n_row ? p.k : p.n_row, k_col = p.k < p.n_col ? p.k : p.n_col;
  return k_row >= 1 && k_col >= 1 && (p.k - 1) / k_col < k_row;  // k <= k_row * k_col, without the product
}

inline bool is_sound(const UltramemAttention& p) {
  if (p.batch < 0 || p.heads < 1 || p.kv_heads < 1 || p.heads % p.kv_heads != 0) return false;
  return p.places >= 1 && p.width >= 1 && p.value_width >= 1;
}

inline bool is_sound(const UltramemLinear& p) {
  return p.rows >= 0 && p.columns >= 0 && p.depth >= 0 && p.x_stride >= p.depth;
}

}  // namespace ultramem
