// TuckerTopK of one head of one token by one block of threads, in the phases that selection.h describes.
//
//   row_scores [tokens, H, R, n_row], col_scores [tokens, H, R, n_col], u and v [H, R], core [M, H, R, R], all of T
//   scores [tokens, H*k, M] of T; indices [tokens, H*k]
//
// The candidate grid is never stored: its scores are made again wherever a phase asks for them, from k_row*R and
// k_col*R numbers that stay close.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ultramem_kernels.h"
#include "selection.h"

namespace ultramem::cuda {

// Where one item's numbers lie in the memory that its block shares. With a null base it only measures.
struct TuckerTopKScratch {
  ULTRAMEM_BOTH TuckerTopKScratch(const UltramemTuckerTopK& problem, bool cache_ranks, void* base)
      : k_row(problem.k < problem.n_row ? problem.k : problem.n_row),
        k_col(problem.k < problem.n_col ? problem.k : problem.n_col),
        bytes(0),
        base_(static_cast<char*>(base)) {
    take(&row_selection, 1);
    take(&col_selection, 1);
    take(&rows, padded(k_row));
    take(&cols, padded(k_col));
    take(&pairs, padded(problem.k));
    take(&row, problem.rank * k_row);
    take(&col, problem.rank * k_col);
    take(&left, problem.rank * k_row);
    take(&cores, (problem.cores + 1) * problem.rank * problem.rank);
    take(&row_ranks, cache_ranks ? problem.n_row : 0);
    take(&col_ranks, cache_ranks ? problem.n_col : 0);
    if (!cache_ranks) row_ranks = col_ranks = nullptr;
  }

  std::int64_t k_row;  // rows kept by stage 1
  std::int64_t k_col;
  Selection* row_selection;
  Selection* col_selection;
  std::uint64_t* rows;       // kept keys, best first
  std::uint64_t* cols;       //
  std::uint64_t* pairs;      // position i * k_col + j on the kept grid
  float* row;                // [R, k_row]: the kept rows' own scores
  float* col;                // [R, k_col]
  float* left;               // [R, k_row]: kept rows times the summed core
  float* cores;              // [M + 1, R, R]: this head's cores, then their sum
  std::uint32_t* row_ranks;  // [n_row]: of the weighted scores; null where they are made again each time
  std::uint32_t* col_ranks;
  std::int64_t bytes;

 private:
  template <typename Item>
  ULTRAMEM_BOTH void take(Item** at, std::int64_t count) {
    *at = base_ == nullptr ? nullptr : reinterpret_cast<Item*>(base_ + bytes);
    bytes += (count * static_cast<std::int64_t>(sizeof(Item)) + 15) / 16 * 16;
  }

  char* base_;
};

// One side of stage 1: scores [rank, n] weighted by weights [rank].
template <typename T>
struct Side {
  const T* scores;
  const T* weights;
  std::int64_t rank;
  std::int64_t n;

  ULTRAMEM_BLOCK std::uint32_t rank_at(std::uint32_t i) const {
    float sum = 0;
    for (std::int64_t r = 0; r < rank; ++r) sum += to_float(weights[r]) * to_float(scores[r * n + i]);
    return rank_of(sum);
  }
};

// The best `keep` keys into `best`, best first, and their scores of each rank into kept [rank, keep].
template <typename T, typename Block>
ULTRAMEM_BLOCK void keep_side(const Block& block, const Side<T>& side, std::int64_t keep, std::uint32_t* ranks,
                              Selection& selection, std::uint64_t* best, float* kept) {
  const auto count = static_cast<std::uint32_t>(side.n);
  if (ranks != nullptr) block.each(count, [&](std::uint32_t i) { ranks[i] = side.rank_at(i); });
  const auto key = [&](std::uint32_t i) { return key_of(ranks != nullptr ? ranks[i] : side.rank_at(i), i); };
  select(block, key, count, static_cast<std::uint32_t>(keep), selection, best);
  block.each(static_cast<std::uint32_t>(side.rank * keep), [&](std::uint32_t at) {
    const std::int64_t r = at / keep, i = at % keep;
    kept[at] = to_float(side.scores[r * side.n + position_of(best[i])]);
  });
}

// This head's cores as float, and behind them their sum.
template <typename T, typename Block>
ULTRAMEM_BLOCK void read_cores(const Block& block, const UltramemTuckerTopK& p, std::int64_t head, float* cores) {
  const std::int64_t size = p.rank * p.rank;
  block.each(static_cast<std::uint32_t>(size), [&](std::uint32_t e) {
    float sum = 0;
    for (std::int64_t c = 0; c < p.cores; ++c) {
      const float value = to_float(static_cast<const T*>(p.core)[(c * p.heads + head) * size + e]);
      cores[c * size + e] = value;
      sum += value;
    }
    cores[p.cores * size + e] = sum;
  });
}

// row[:, i]^T core_c col[:, j] for kept row i and column j
ULTRAMEM_BLOCK float core_score(const UltramemTuckerTopK& p, const TuckerTopKScratch& s, std::int64_t c, std::int64_t i,
                                std::int64_t j) {
  const float* core = s.cores + c * p.rank * p.rank;
  float score = 0;
  for (std::int64_t a = 0; a < p.rank; ++a) {
    for (std::int64_t b = 0; b < p.rank; ++b) {
      score += s.row[a * s.k_row + i] * core[a * p.rank + b] * s.col[b * s.k_col + j];
    }
  }
  return score;
}

// Stage 2: the best k of the kept grid by the summed core.
template <typename Block>
ULTRAMEM_BLOCK void keep_pairs(const Block& block, const UltramemTuckerTopK& p, const TuckerTopKScratch& s) {
  const float* sum = s.cores + p.cores * p.rank * p.rank;
  block.each(static_cast<std::uint32_t>(p.rank * s.k_row), [&](std::uint32_t at) {
    const std::int64_t b = at / s.k_row, i = at % s.k_row;
    float value = 0;
    for (std::int64_t a = 0; a < p.rank; ++a) value += s.row[a * s.k_row + i] * sum[a * p.rank + b];
    s.left[at] = value;
  });
  const auto k_col = static_cast<std::uint32_t>(s.k_col);
  const auto key = [&](std::uint32_t at) {
    const std::uint32_t i = at / k_col, j = at % k_col;
    float score = 0;
    for (std::int64_t b = 0; b < p.rank; ++b) score += s.left[b * s.k_row + i] * s.col[b * s.k_col + j];
    return key_of(rank_of(score), at);
  };
  select(block, key, static_cast<std::uint32_t>(s.k_row * s.k_col), static_cast<std::uint32_t>(p.k), *s.row_selection,
         s.pairs);
}

// A Block offers split(f, g) besides: f and g, each given a block, run side by side on half of the threads.
template <typename T, typename Block>
ULTRAMEM_BLOCK void tucker_topk_item(const Block& block, const UltramemTuckerTopK& p, std::int64_t item,
                                     const TuckerTopKScratch& s) {
  const std::int64_t head = item % p.heads;
  const Side<T> row = {static_cast<const T*>(p.row_scores) + item * p.rank * p.n_row,
                       static_cast<const T*>(p.u) + head * p.rank, p.rank, p.n_row};
  const Side<T> col = {static_cast<const T*>(p.col_scores) + item * p.rank * p.n_col,
                       static_cast<const T*>(p.v) + head * p.rank, p.rank, p.n_col};
  read_cores<T>(block, p, head, s.cores);
  block.split([&](const auto& half) { keep_side(half, row, s.k_row, s.row_ranks, *s.row_selection, s.rows, s.row); },
              [&](const auto& half) { keep_side(half, col, s.k_col, s.col_ranks, *s.col_selection, s.cols, s.col); });
  keep_pairs(block, p, s);
  block.each(static_cast<std::uint32_t>(p.k), [&](std::uint32_t q) {
    const std::int64_t pair = position_of(s.pairs[q]), i = pair / s.k_col, j = pair % s.k_col;
    const std::int64_t at = item * p.k + q;
    p.indices[at] = position_of(s.rows[i]) * p.n_col + position_of(s.cols[j]);
    for (std::int64_t c = 0; c < p.cores; ++c) {
      from_float(core_score(p, s, c, i, j), static_cast<T*>(p.scores) + at * p.cores + c);
    }
  });
}

}  // namespace ultramem::cuda
