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

inline Candidate median(const Candidate& a, const Candidate& b, const Candidate& c) {
  const Candidate low = a.key < b.key ? a : b, high = a.key < b.key ? b : a;
  return c.key < low.key ? low : c.key < high.key ? c : high;
}

// Moves the best `keep` of `count` candidates to the front, in some order. The swap is unconditional because a branch
// on random scores is mispredicted half the time, which made std::nth_element three quarters of the whole operator.
inline void keep_best(Candidate* candidates, std::int64_t count, std::int64_t keep) {
  constexpr std::int64_t kFew = 16;
  while (count > kFew && keep < count) {
    const Candidate pivot = median(candidates[0], candidates[count / 2], candidates[count - 1]);
    std::int64_t better = 0;  // candidates[0, better) are at least as good as the pivot
    for (std::int64_t i = 0; i < count; ++i) {
      const Candidate candidate = candidates[i];
      candidates[i] = candidates[better];
      candidates[better] = candidate;
      better += candidate.key >= pivot.key;
    }
    // Keys differ, so a median of three leaves something on both sides, and each turn has less to look at.
    if (better >= keep) {
      count = better;
    } else {
      candidates += better;
      count -= better;
      keep -= better;
    }
  }
  if (keep < count) std::sort(candidates, candidates + count, Better{});
}

class Selector {
 public:
  // `buffer` holds TuckerTopKScratch::capacity(keep) candidates.
  Selector(Candidate* buffer, std::int64_t keep) : buffer_(buffer), keep_(keep) {}

  // Offers `count` <= kWidth scores, of the positions from `position` on; positions must rise from call to call.
  void offer(Vector scores, std::int64_t position, std::int64_t count) {
    const Vector ordered = Simd::add(Simd::ordered(scores), Simd::splat(0));  // -0 + 0 is 0
    // Until the first pruning every score counts. After it a tie with the worst one kept loses, being later.
    std::uint32_t lanes = full_ ? Simd::greater(ordered, Simd::splat(threshold_)) : ~0u;
    lanes &= (1u << count) - 1;
    if (lanes == 0) return;
    float values[Simd::kWidth];
    Simd::store(values, ordered);
    for (; lanes != 0; lanes &= lanes - 1) {
      const auto lane = __builtin_ctz(lanes);
      buffer_[size_++] = Candidate::of(values[lane], position + lane);
    }
    if (size_ > TuckerTopKScratch::kPruneAt * keep_) prune();
  }

  // Leaves the best min(keep, offered) in the buffer, best first.
  void finish() {
    if (size_ > keep_) prune();
    std::sort(buffer_, buffer_ + size_, Better{});
  }

 private:
  void prune() {
    keep_best(buffer_, size_, keep_);
    Candidate worst = buffer_[0];
    for (std::int64_t i = 1; i < keep_; ++i) worst = buffer_[i].key < worst.key ? buffer_[i] : worst;
    threshold_ = worst.score();
    size_ = keep_;
    full_ = true;
  }

  Candidate* buffer_;
  std::int64_t keep_;
  std::int64_t size_ = 0;
  float threshold_ = 0;
  bool full_ = false;
};

}  // namespace
}  // namespace ultramem
