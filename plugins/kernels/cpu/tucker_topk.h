// TuckerTopK on one instruction set.
//
//   row_scores [tokens, H, R, n_row], col_scores [tokens, H, R, n_col], u and v [H, R], core [M, H, R, R], all of T
//   scores [tokens, H*k, M] of T; indices [tokens, H*k]
//
// An item is one head of one token. Nothing is allocated: everything between the stages lies in TuckerTopKScratch.
#pragma once

#include <cstdint>

#include "selector.h"

namespace ultramem {
namespace {

// Up to kWidth numbers at `from`, whichever way is safe.
template <typename T>
Vector load_up_to(const T* from, std::int64_t count) {
  return count >= Simd::kWidth ? Simd::load(from) : load_partial(from, count);
}

// The sums over r of weights[r] * scores[r, at .. at + kWidth), for scores [rank, n], as the selector takes them.
template <typename T, typename W>
Vector weigh(const T* scores, const W* weights, std::int64_t rank, std::int64_t n, std::int64_t at) {
  Vector sums = Simd::splat(0);
  for (std::int64_t r = 0; r < rank; ++r) {
    sums = Simd::multiply_add(Simd::splat(to_float(weights[r])), load_up_to(scores + r * n + at, n - at), sums);
  }
  return Selector::ordered(sums);
}

// `weigh` of whole vectors from `begin` on, to `to`, with a rank that the compiler knows; returns the first position
// left.
template <std::int64_t kRank, typename T, typename W>
std::int64_t weigh_whole(const T* scores, const W* weights, std::int64_t n, std::int64_t begin, std::int64_t end,
                         float* to) {
  Vector factors[kRank];
  for (std::int64_t r = 0; r < kRank; ++r) factors[r] = Simd::splat(to_float(weights[r]));
  for (; begin + Simd::kWidth <= end; begin += Simd::kWidth, to += Simd::kWidth) {
    Vector sums = Simd::splat(0);
    for (std::int64_t r = 0; r < kRank; ++r) {
      sums = Simd::multiply_add(factors[r], Simd::load(scores + r * n + begin), sums);
    }
    Simd::store(to, Selector::ordered(sums));
  }
  return begin;
}

// Offers the first `few` positions of scores [rank, n], weighted by weights [rank], counting from `base`.
template <typename T, typename W>
void offer_few(Selector& selector, const T* scores, const W* weights, std::int64_t rank, std::int64_t n,
               std::int64_t few, std::int64_t base) {
  for (std::int64_t at = 0; at < few; at += Simd::kWidth) {
    const std::int64_t count = few - at < Simd::kWidth ? few - at : Simd::kWidth;
    selector.offer(weigh(scores, weights, rank, n, at), base + at, count);
  }
}

// Positions [begin, end) of scores [rank, n], weighted by weights [rank], to `to`, in whole vectors.
template <typename T, typename W>
void weigh_all(const T* scores, const W* weights, std::int64_t rank, std::int64_t n, std::int64_t begin,
               std::int64_t end, float* to) {
  constexpr std::int64_t kUsualRank = 2;
  std::int64_t at = rank == kUsualRank ? weigh_whole<kUsualRank>(scores, weights, n, begin, end, to) : begin;
  for (; at < end; at += Simd::kWidth) Simd::store(to + at - begin, weigh(scores, weights, rank, n, at));
}

// Stage 1 of one side: the best `keep` positions into `best`, and their scores of each rank into kept [rank, keep].
template <typename T>
void keep_side(const TuckerTopKScratch& scratch, const T* scores, const T* weights, std::int64_t rank, std::int64_t n,
               std::int64_t keep, Candidate* best, float* kept) {
  Selector selector(scratch, keep);
  for (std::int64_t begin = 0; begin < n; begin += Selector::kBlock) {
    const std::int64_t end = smaller_of(begin + Selector::kBlock, n);
    weigh_all(scores, weights, rank, n, begin, end, selector.block());
    selector.offer_block(begin, end - begin);
  }
  selector.finish(best);
  for (std::int64_t r = 0; r < rank; ++r) {
    for (std::int64_t i = 0; i < keep; ++i) kept[r * keep + i] = to_float(scores[r * n + best[i].position()]);
  }
}

template <typename T>
class TuckerTopK {
 public:
  TuckerTopK(const UltramemTuckerTopK& problem, void* scratch) : p_(problem), s_(problem, scratch) {}

  void run(std::int64_t token, std::int64_t head) {
    const std::int64_t item = token * p_.heads + head;
    const auto* row_scores = static_cast<const T*>(p_.row_scores) + item * p_.rank * p_.n_row;
    const auto* col_scores = static_cast<const T*>(p_.col_scores) + item * p_.rank * p_.n_col;
    const auto* u = static_cast<const T*>(p_.u) + head * p_.rank;
    const auto* v = static_cast<const T*>(p_.v) + head * p_.rank;
    keep_side(s_, row_scores, u, p_.rank, p_.n_row, s_.k_row, s_.rows, s_.row);
    keep_side(s_, col_scores, v, p_.rank, p_.n_col, s_.k_col, s_.cols, s_.col);
    read_cores(head);
    keep_pairs();
    write(item);
  }

 private:
  void read_cores(std::int64_t head) {
    const std::int64_t size = p_.rank * p_.rank;
    float* sum = s_.cores + p_.cores * size;
    for (std::int64_t e = 0; e < size; ++e) sum[e] = 0;
    for (std::int64_t c = 0; c < p_.cores; ++c) {
      const T* core = static_cast<const T*>(p_.core) + (c * p_.heads + head) * size;
      for (std::int64_t e = 0; e < size; ++e) sum[e] += s_.cores[c * size + e] = to_float(core[e]);
    }
  }

  // Stage 2: the best k of the kept grid by the summed core.
  void keep_pairs() {
    const float* sum = s_.cores + p_.cores * p_.rank * p_.rank;
    Selector selector(s_, p_.k);
    if (falls_both_ways(sum)) {
      offer_stairs(selector, sum);
    } else {
      offer_grid(selector, sum);
    }
    selector.finish(s_.pairs);
  }

  // The pairs above and to the left are no worse: beyond k of them a pair has no place, and the rest is a staircase.
  void offer_stairs(Selector& selector, const float* sum) {
    for (std::int64_t i = 0; i < s_.k_row; ++i) {
      multiply_row(i, sum);
      const std::int64_t few = smaller_of(p_.k / (i + 1), s_.k_col);
      offer_few(selector, s_.col, s_.left, p_.rank, s_.k_col, few, i * s_.k_col);
    }
  }

  // Whole rows of the grid, as many as fit into a block at a time.
  void offer_grid(Selector& selector, const float* sum) {
    std::int64_t held = 0;
    for (std::int64_t i = 0; i < s_.k_row; ++i) {
      multiply_row(i, sum);
      for (std::int64_t begin = 0, end; begin < s_.k_col; begin = end) {
        end = smaller_of(begin + Selector::kBlock, s_.k_col);
        if (held + end - begin > Selector::kBlock) {
          selector.offer_block(i * s_.k_col + begin - held, held);
          held = 0;
        }
        weigh_all(s_.col, s_.left, p_.rank, s_.k_col, begin, end, selector.block() + held);
        held += end - begin;
      }
    }
    selector.offer_block(s_.k_row * s_.k_col - held, held);
  }

  // Kept row i times the summed core.
  void multiply_row(std::int64_t i, const float* sum) {
    for (std::int64_t b = 0; b < p_.rank; ++b) {
      s_.left[b] = 0;
      for (std::int64_t a = 0; a < p_.rank; ++a) s_.left[b] += s_.row[a * s_.k_row + i] * sum[a * p_.rank + b];
    }
  }

  // Whether the kept grid falls along every row and column, as that of additive product keys does: rank 2, scores
  // [s1, 1] and [1, s2], a core c*I with c > 0.
  bool falls_both_ways(const float* core) const {
    if (p_.rank != 2 || core[1] != 0 || core[2] != 0 || !(core[0] > 0) || core[0] != core[3]) return false;
    return falls_beside_ones(s_.row, s_.row + s_.k_row, s_.k_row) &&
           falls_beside_ones(s_.col + s_.k_col, s_.col, s_.k_col);
  }

  static bool falls_beside_ones(const float* scores, const float* ones, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      if (ones[i] != 1 || !(i == 0 ? scores[0] == scores[0] : scores[i] <= scores[i - 1])) return false;
    }
    return true;
  }

  void write(std::int64_t item) const {
    for (std::int64_t q = 0; q < p_.k; ++q) {
      // In 32 bits, which divide faster; positions fit.
      const auto pair = static_cast<std::uint32_t>(s_.pairs[q].position());
      const std::int64_t i = pair / static_cast<std::uint32_t>(s_.k_col), j = pair - i * s_.k_col;
      const std::int64_t at = item * p_.k + q;
      p_.indices[at] = s_.rows[i].position() * p_.n_col + s_.cols[j].position();
      for (std::int64_t c = 0; c < p_.cores; ++c) {
        from_float(core_score(c, i, j), static_cast<T*>(p_.scores) + at * p_.cores + c);
      }
    }
  }

  // row[:, i]^T core_c col[:, j]
  float core_score(std::int64_t c, std::int64_t i, std::int64_t j) const {
    const float* core = s_.cores + c * p_.rank * p_.rank;
    float score = 0;
    for (std::int64_t a = 0; a < p_.rank; ++a) {
      for (std::int64_t b = 0; b < p_.rank; ++b) {
        score += s_.row[a * s_.k_row + i] * core[a * p_.rank + b] * s_.col[b * s_.k_col + j];
      }
    }
    return score;
  }

  const UltramemTuckerTopK& p_;
  TuckerTopKScratch s_;
};

template <typename T>
UltramemStatus tucker_topk(const UltramemTuckerTopK& problem, UltramemRange items, void* scratch) {
  TuckerTopK<T> kernel(problem, scratch);
  for (std::int64_t item = items.begin; item < items.end; ++item) {
    kernel.run(item / problem.heads, item % problem.heads);
  }
  return {ULTRAMEM_OK, 0, 0, 0};
}

inline UltramemStatus tucker_topk_any(const UltramemTuckerTopK& problem, UltramemRange items, void* scratch) {
  return problem.type == ULTRAMEM_FLOAT32 ? tucker_topk<float>(problem, items, scratch)
                                          : tucker_topk<Half>(problem, items, scratch);
}

}  // namespace
}  // namespace ultramem
