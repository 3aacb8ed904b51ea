// Keeps the best few of a stream of scores without sorting it: a threshold rejects most of them a vector at a time.
#pragma once

#include <cstdint>

#include "candidate.h"
#include "ranking.h"
#include "span.h"

namespace ultramem {
namespace {

class Selector {
 public:
  static constexpr std::int64_t kBlock = TuckerTopKScratch::kBlock;

  // The buffers of `scratch` are the selector's until it has finished.
  Selector(const TuckerTopKScratch& scratch, std::int64_t keep)
      : scores_(scratch.offered),
        positions_(scratch.positions),
        block_(scratch.block),
        maxima_(scratch.maxima),
        keep_(keep) {}

  // Scores as the selector takes them: NaN above every number, and one zero alone.
  static Vector ordered(Vector scores) { return Simd::add(Simd::ordered(scores), Simd::splat(0)); }

  // Offers `count` <= kWidth ordered scores, of the positions from `position` on; positions must rise from call to
  // call.
  void offer(Vector scores, std::int64_t position, std::int64_t count) {
    // Until there is a threshold every score counts. After it a tie with the worst one kept loses, being later.
    std::uint32_t lanes = full_ ? Simd::greater(scores, Simd::splat(threshold_)) : ~0u;
    lanes &= (1u << count) - 1;
    if (lanes == 0) return;
    append(scores, position, lanes);
    prune_if_full();
  }

  // Where up to kBlock ordered scores go before `offer_block`; a vector may be stored beyond the last of them.
  float* block() { return block_; }

  // Offers the first `count` scores of the block, as `offer` does.
  void offer_block(std::int64_t position, std::int64_t count) {
    if (!full_ && count > 2 * keep_) bound(count);
    std::int64_t at = 0;
    for (constexpr std::int64_t kStep = kTogether * Simd::kWidth; full_ && at + kStep <= count; at += kStep) {
      offer_together(position, at);
    }
    for (; at < count; at += Simd::kWidth) {
      offer(Simd::load(block_ + at), position + at, smaller_of(count - at, Simd::kWidth));
    }
  }

  // The best min(keep, offered) into `best`, best first.
  void finish(Candidate* best) {
    constexpr std::int64_t kMostCounted = 1024;
    if (size_ > kMostCounted && size_ > keep_) prune(0);
    if (size_ > kMostCounted) {
      write_sorted(scores_, positions_, size_, best);
    } else {
      write_ranked(scores_, positions_, size_, keep_, best);
    }
  }

 private:
  static constexpr std::int64_t kTogether = TuckerTopKScratch::kTogether;

  // A branch for each vector would be mispredicted for most that hold something.
  void offer_together(std::int64_t position, std::int64_t at) {
    const Vector limit = Simd::splat(threshold_);
    std::uint32_t lanes[kTogether], any = 0;
#pragma GCC unroll 4
    for (std::int64_t v = 0; v < kTogether; ++v) {
      any |= lanes[v] = Simd::greater(Simd::load(block_ + at + v * Simd::kWidth), limit);
    }
    if (any == 0) return;
#pragma GCC unroll 4
    for (std::int64_t v = 0; v < kTogether; ++v) {
      const std::int64_t from = at + v * Simd::kWidth;
      append(Simd::load(block_ + from), position + from, lanes[v]);
    }
    prune_if_full();
  }

  void append(Vector scores, std::int64_t position, std::uint32_t lanes) {
    Simd::store_lanes(scores, static_cast<std::uint32_t>(position), lanes, scores_ + size_, positions_ + size_);
    size_ += __builtin_popcount(lanes);
  }

  void prune_if_full() {
    if (size_ > TuckerTopKScratch::kPruneAt * keep_) prune(keep_ / 4);
  }

  // A first threshold that at least keep_ scores of the block exceed, and few more: as many groups have a best score
  // above it. Else the first scores offered would all be stored, and pruned again and again.
  void bound(std::int64_t count) {
    constexpr std::int64_t kGroupsEach = 4;
    Simd::store(block_ + count, Simd::splat(-__builtin_inff()));
    const std::int64_t vectors = (count + Simd::kWidth - 1) / Simd::kWidth;
    const std::int64_t groups = smaller_of((kGroupsEach * keep_ + Simd::kWidth - 1) / Simd::kWidth, vectors);
    for (std::int64_t g = 0; g < groups; ++g)
      Simd::store(maxima_ + g * Simd::kWidth, Simd::load(block_ + g * Simd::kWidth));
    for (std::int64_t v = groups; v < vectors; v += groups) {
      for (std::int64_t g = 0; g < smaller_of(groups, vectors - v); ++g) {
        float* most = maxima_ + g * Simd::kWidth;
        Simd::store(most, Simd::larger(Simd::load(most), Simd::load(block_ + (v + g) * Simd::kWidth)));
      }
    }
    const Cut cut = cut_at(maxima_, groups * Simd::kWidth, keep_, keep_ / 8);
    if (cut.threshold == -__builtin_inff()) return;
    threshold_ = cut.ties > 0 ? next_below(cut.threshold) : cut.threshold;
    full_ = true;
  }

  void prune(std::int64_t more) {
    const Cut cut = cut_at(scores_, size_, keep_, more);
    const Vector limit = Simd::splat(cut.threshold);
    std::int64_t kept = 0, ties = cut.ties;
    for (std::int64_t at = 0; at < size_; at += Simd::kWidth) {
      const Vector scores = Simd::load(scores_ + at);
      const std::uint32_t there = size_ - at < Simd::kWidth ? (1u << (size_ - at)) - 1 : (1u << Simd::kWidth) - 1;
      std::uint32_t lanes = Simd::greater(scores, limit);
      for (std::uint32_t equal = ~(lanes | Simd::greater(limit, scores)) & there; ties > 0 && equal != 0; --ties) {
        lanes |= equal & (~equal + 1);
        equal &= equal - 1;
      }
      lanes &= there;
      Simd::move_lanes(scores_ + at, positions_ + at, lanes, scores_ + kept, positions_ + kept);
      kept += __builtin_popcount(lanes);
    }
    size_ = kept;
    threshold_ = cut.threshold;
    full_ = true;
  }

  float* scores_;
  std::uint32_t* positions_;
  float* block_;
  float* maxima_;
  std::int64_t keep_;
  std::int64_t size_ = 0;
  float threshold_ = 0;
  bool full_ = false;
};

}  // namespace
}  // namespace ultramem
