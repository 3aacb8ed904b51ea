#include "reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ultramem::harness {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// Positions of the `keep` greatest, best first.
Indices best(const Numbers& scores, std::int64_t keep) {
  Indices order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return scores[at(a)] > scores[at(b)]; });
  order.resize(at(std::min<std::int64_t>(keep, static_cast<std::int64_t>(order.size()))));
  return order;
}

// sum_r weights[head, r] * scores[item, r, i] for every i of [0, n)
Numbers stage_one(const TopK& size, const Numbers& scores, const Numbers& weights, std::int64_t item, std::int64_t n) {
  Numbers sums(at(n));
  for (std::int64_t r = 0; r < size.rank; ++r) {
    const double weight = weights[at(item % size.heads * size.rank + r)];
    for (std::int64_t i = 0; i < n; ++i) sums[at(i)] += weight * scores[at((item * size.rank + r) * n + i)];
  }
  return sums;
}

// row[:, i]^T core_c col[:, j]
double core_score(const TopK& size, const Numbers& row, const Numbers& col, const Numbers& core, std::int64_t item,
                  std::int64_t c, std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::int64_t a = 0; a < size.rank; ++a) {
    for (std::int64_t b = 0; b < size.rank; ++b) {
      sum += row[at((item * size.rank + a) * size.n_row + i)] * col[at((item * size.rank + b) * size.n_col + j)] *
             core[at(((c * size.heads + item % size.heads) * size.rank + a) * size.rank + b)];
    }
  }
  return sum;
}

}  // namespace

Numbers sparse_lookup(const Lookup& size, const Numbers& table, const Indices& addresses, const Numbers& scores) {
  const std::int64_t tokens = static_cast<std::int64_t>(addresses.size()) / size.slots;
  Numbers output(at(tokens * size.blocks * size.width));
  for (std::int64_t pair = 0; pair < tokens * size.slots; ++pair) {
    const std::int64_t block = addresses[at(pair)] / size.rows, row = addresses[at(pair)] % size.rows;
    for (std::int64_t d = 0; d < size.width; ++d) {
      const double score = scores[at(pair * size.cores + d / (size.width / size.cores))];
      output[at((pair / size.slots * size.blocks + block) * size.width + d)] += score * table[at(row * size.width + d)];
    }
  }
  return output;
}

Numbers sparse_gate_swiglu(std::int64_t rows, std::int64_t width, std::int64_t slots, const Numbers& table,
                           const Indices& addresses, const Numbers& x) {
  Numbers gates;
  for (std::size_t pair = 0; pair < addresses.size(); ++pair) {
    const std::int64_t row = addresses[pair] % rows, token = static_cast<std::int64_t>(pair) / slots;
    double first = 0, second = 0;
    for (std::int64_t d = 0; d < width; ++d) {
      first += table[at(row * 2 * width + d)] * x[at(token * width + d)];
      second += table[at((row * 2 + 1) * width + d)] * x[at(token * width + d)];
    }
    gates.push_back(first / (1 + std::exp(-first)) * second);
  }
  return gates;
}

Retrieved tucker_topk(const TopK& size, const Numbers& row, const Numbers& col, const Numbers& u, const Numbers& v,
                      const Numbers& core) {
  Retrieved all;
  const std::int64_t items = static_cast<std::int64_t>(row.size()) / (size.rank * size.n_row);
  for (std::int64_t item = 0; item < items; ++item) {
    const Indices rows = best(stage_one(size, row, u, item, size.n_row), size.k);
    const Indices cols = best(stage_one(size, col, v, item, size.n_col), size.k);
    Numbers totals;
    for (const std::int64_t i : rows) {
      for (const std::int64_t j : cols) {
        totals.push_back(0);
        for (std::int64_t c = 0; c < size.cores; ++c) totals.back() += core_score(size, row, col, core, item, c, i, j);
      }
    }
    const auto columns = static_cast<std::int64_t>(cols.size());
    for (const std::int64_t pair : best(totals, size.k)) {
      const std::int64_t i = rows[at(pair / columns)], j = cols[at(pair % columns)];
      all.indices.push_back(i * size.n_col + j);
      for (std::int64_t c = 0; c < size.cores; ++c) {
        all.scores.push_back(core_score(size, row, col, core, item, c, i, j));
      }
    }
  }
  return all;
}

}  // namespace ultramem::harness
