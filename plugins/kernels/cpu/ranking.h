// Finding the best of some scores by counting: no branch to mispredict, which made a quickselect three quarters of
// TuckerTopK, and a sort half of what was left. Scores are floats but NaN and -0.
#pragma once

#include <algorithm>
#include <cstdint>

#include "candidate.h"
#include "span.h"

namespace ultramem {
namespace {

// As std::min and std::max, which the linker would share (see number.h).
template <typename T>
T smaller_of(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
T larger_of(T a, T b) {
  return a < b ? b : a;
}

// Floats but NaN and -0 as integers that sort as they do.
inline std::int32_t rank_of(float score) {
  const auto bits = static_cast<std::int32_t>(to_bits(score));
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

inline float score_of(std::int32_t rank) {
  return from_bits(static_cast<std::uint32_t>(rank < 0 ? rank ^ 0x7fffffff : rank));
}

// The greatest number that is less; `score` is not -infinity. Just below 0 in this order is -0, which equals it.
inline float next_below(float score) { return score_of(rank_of(score) - (score == 0 ? 2 : 1)); }

struct Range {
  float least;
  float most;
};

// Of `count` > 0 scores.
inline Range range_of(const float* scores, std::int64_t count) {
  Range range{scores[0], scores[0]};
  const auto widen = [&range](float least, float most) {
    range = {smaller_of(range.least, least), larger_of(range.most, most)};
  };
  if (count < Simd::kWidth) {
    for (std::int64_t i = 1; i < count; ++i) widen(scores[i], scores[i]);
    return range;
  }
  Vector least = Simd::load(scores), most = least;
  for (std::int64_t i = Simd::kWidth; i < count; i += Simd::kWidth) {
    const Vector part = Simd::load(scores + smaller_of(i, count - Simd::kWidth));
    least = Simd::smaller(least, part);
    most = Simd::larger(most, part);
  }
  float lanes[2][Simd::kWidth];
  Simd::store(lanes[0], least);
  Simd::store(lanes[1], most);
  for (std::int64_t i = 0; i < Simd::kWidth; ++i) widen(lanes[0][i], lanes[1][i]);
  return range;
}

inline std::int64_t count_above(const float* scores, std::int64_t count, float limit) {
  const Vector limits = Simd::splat(limit);
  std::int64_t above = 0, i = 0;
  for (; i + Simd::kWidth <= count; i += Simd::kWidth) {
    above += __builtin_popcount(Simd::greater(Simd::load(scores + i), limits));
  }
  for (; i < count; ++i) above += scores[i] > limit;
  return above;
}

// The scores above the threshold, and the first `ties` of those that equal it.
struct Cut {
  float threshold;
  std::int64_t ties;
};

// Cuts `count` scores to at least `keep` <= count, and at most `more` beyond it, by bisecting their range.
inline Cut cut_at(const float* scores, std::int64_t count, std::int64_t keep, std::int64_t more) {
  const Range range = range_of(scores, count);
  std::int64_t low = std::int64_t{rank_of(range.least)} - 1, high = rank_of(range.most), above = 0;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    const float limit = score_of(static_cast<std::int32_t>(middle));
    const std::int64_t exceed = count_above(scores, count, limit);
    if (keep <= exceed && exceed <= keep + more) return {limit, 0};
    if (exceed > keep) {
      low = middle;
    } else {
      high = middle;
      above = exceed;
    }
  }
  return {score_of(static_cast<std::int32_t>(high)), keep - above};
}

constexpr int kChains = 4;  // sums whose additions do not wait for one another

// Adds to `counts`, lane by lane, how many of the scores [begin, end) compare so with `own`.
template <Vector (*kCount)(Vector, Vector, Vector)>
void add_counts(const float* begin, const float* end, Vector own, Vector* counts) {
  for (; begin + kChains <= end; begin += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) counts[c] = kCount(counts[c], Simd::splat(begin[c]), own);
  }
  for (; begin < end; ++begin) counts[0] = kCount(counts[0], Simd::splat(*begin), own);
}

// How many of the scores come before each of those from `first` on, one vector of them: the greater ones, and equal
// ones that are earlier.
inline void count_better(const float* scores, std::int64_t count, std::int64_t first, float* better) {
  const Vector own = Simd::load(scores + first);
  Vector counts[kChains] = {Simd::splat(0), Simd::splat(0), Simd::splat(0), Simd::splat(0)};
  add_counts<Simd::count_not_less>(scores, scores + first, own, counts);
  add_counts<Simd::count_greater>(scores + first, scores + count, own, counts);
  for (std::int64_t i = first; i < smaller_of(first + Simd::kWidth, count); ++i) {
    counts[0] = Simd::count_equal_after(counts[0], Simd::splat(scores[i]), own, i - first);
  }
  Simd::store(better, Simd::add(Simd::add(counts[0], counts[1]), Simd::add(counts[2], counts[3])));
}

// The best min(keep, count) of the scores into `best`, best first; a vector beyond them must be readable. Positions
// rise: of equal scores the first is better.
inline void write_ranked(const float* scores, const std::uint32_t* positions, std::int64_t count, std::int64_t keep,
                         Candidate* best) {
  float better[Simd::kWidth];
  for (std::int64_t first = 0; first < count; first += Simd::kWidth) {
    count_better(scores, count, first, better);
    for (std::int64_t i = first; i < smaller_of(first + Simd::kWidth, count); ++i) {
      const auto rank = static_cast<std::int64_t>(better[i - first]);
      if (rank < keep) best[rank] = Candidate::of(scores[i], positions[i]);
    }
  }
}

struct Better {
  bool operator()(const Candidate& a, const Candidate& b) const { return a.key > b.key; }
};

// As write_ranked with `keep` = `count`, in fewer steps where they are many.
inline void write_sorted(const float* scores, const std::uint32_t* positions, std::int64_t count, Candidate* best) {
  for (std::int64_t i = 0; i < count; ++i) best[i] = Candidate::of(scores[i], positions[i]);
  std::sort(best, best + count, Better{});
}

}  // namespace
}  // namespace ultramem
