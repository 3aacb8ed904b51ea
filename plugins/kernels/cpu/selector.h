// Keeps the best few of a stream of scores without sorting it: a threshold rejects most of them a vector at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "candidate.h"
#include "span.h"

namespace ultramem {
namespace {

struct Better {
  bool operator()(const Candidate& a, const Candidate& b) const { return a.key > b.key; }
};

// Floats but NaN and -0 as integers that sort as they do.
inline std::int32_t rank_of(float score) {
  const auto bits = static_cast<std::int32_t>(to_bits(score));
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

inline float score_of(std::int32_t rank) {
  return from_bits(static_cast<std::uint32_t>(rank < 0 ? rank ^ 0x7fffffff : rank));
}

class Selector {
 public:
  // The buffers of `scratch` are the selector's until it has finished.
  Selector(const TuckerTopKScratch& scratch, std::int64_t keep)
      : scores_(scratch.offered), positions_(scratch.positions), keep_(keep) {}

  // Offers `count` <= kWidth scores, of the positions from `position` on; positions must rise from call to call.
  void offer(Vector scores, std::int64_t position, std::int64_t count) {
    const Vector ordered = Simd::add(Simd::ordered(scores), Simd::splat(0));  // -0 + 0 is 0
    // Until the first pruning every score counts. After it a tie with the worst one kept loses, being later.
    std::uint32_t lanes = full_ ? Simd::greater(ordered, Simd::splat(threshold_)) : ~0u;
    lanes &= (1u << count) - 1;
    if (lanes == 0) return;
    Simd::store_lanes(ordered, static_cast<std::uint32_t>(position), lanes, scores_ + size_, positions_ + size_);
    size_ += __builtin_popcount(lanes);
    if (size_ > TuckerTopKScratch::kPruneAt * keep_) prune();
  }

  // The best min(keep, offered) into `best`, best first.
  void finish(Candidate* best) {
    if (size_ > keep_) prune();
    for (std::int64_t i = 0; i < size_; ++i) best[i] = Candidate::of(scores_[i], positions_[i]);
    std::sort(best, best + size_, Better{});
  }

 private:
  // Bisects the range of scores for one that just `keep_` of them exceed. Counting has no branch to mispredict, which
  // made a quickselect three quarters of the whole operator.
  void prune() {
    float least = scores_[0], most = scores_[0];
    for (std::int64_t i = 1; i < size_; ++i) {
      least = scores_[i] < least ? scores_[i] : least;
      most = scores_[i] > most ? scores_[i] : most;
    }
    std::int64_t low = std::int64_t{rank_of(least)} - 1;  // more than keep_ scores exceed it
    std::int64_t high = rank_of(most);                    // none does
    std::int64_t above = 0;
    while (high - low > 1) {
      const std::int64_t middle = low + (high - low) / 2;
      const std::int64_t count = count_above(score_of(static_cast<std::int32_t>(middle)));
      if (count > keep_) {
        low = middle;
      } else {
        high = middle;
        above = count;
        if (count == keep_) break;
      }
    }
    threshold_ = score_of(static_cast<std::int32_t>(high));
    keep_above(keep_ - above);
    full_ = true;
  }

  std::int64_t count_above(float score) const {
    const Vector limit = Simd::splat(score);
    std::int64_t count = 0, i = 0;
    for (; i + Simd::kWidth <= size_; i += Simd::kWidth) {
      count += __builtin_popcount(Simd::greater(Simd::load(scores_ + i), limit));
    }
    for (; i < size_; ++i) count += scores_[i] > score;
    return count;
  }

  // Leaves the scores above the threshold, and the first `ties` that equal it.
  void keep_above(std::int64_t ties) {
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < size_; ++i) {
      const float score = scores_[i];
      const bool tie = score == threshold_ && ties > 0;
      ties -= tie;
      scores_[kept] = score;
      positions_[kept] = positions_[i];
      kept += tie || score > threshold_;
    }
    size_ = kept;
  }

  float* scores_;
  std::uint32_t* positions_;
  std::int64_t keep_;
  std::int64_t size_ = 0;
  float threshold_ = 0;
  bool full_ = false;
};

}  // namespace
}  // namespace ultramem
