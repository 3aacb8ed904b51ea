// The operators' formulas in float64, as docs/operators.md says them.
#pragma once

#include <cstdint>
#include <vector>

namespace ultramem::harness {

using Numbers = std::vector<double>;
using Indices = std::vector<std::int64_t>;

struct Lookup {
  std::int64_t rows, width, slots, cores, blocks;
};

// [T, blocks*width] for addresses [T, slots], scores [T, slots, cores] and table [rows, width].
Numbers sparse_lookup(const Lookup& size, const Numbers& table, const Indices& addresses, const Numbers& scores);

// [T, slots]: silu(<first half of a row, x>) * <second half, x>, for x [T, width] and table [rows, 2*width].
Numbers sparse_gate_swiglu(std::int64_t rows, std::int64_t width, std::int64_t slots, const Numbers& table,
                           const Indices& addresses, const Numbers& x);

struct TopK {
  std::int64_t heads, rank, n_row, n_col, cores, k;
};

// Virtual indices [T, heads*k], best first, and every core's scores [T, heads*k, cores].
struct Retrieved {
  Indices indices;
  Numbers scores;
};
Retrieved tucker_topk(const TopK& size, const Numbers& row, const Numbers& col, const Numbers& u, const Numbers& v,
                      const Numbers& core);

}  // namespace ultramem::harness
