// Top-m of one block of threads: radix selection finds the threshold, a bitonic network orders what passes it.
//
// Written in phases: `block.each(count, f)` runs f(i) for every i of [0, count), in any order and on any thread, and
// ends when all are done. Nothing is carried from phase to phase but what lies in memory that the block shares, so the
// same source runs on the device and, in the tests, on the host with the order of every phase shuffled.
//
// A Block offers each(count, f), once(f), and add(at, value), which adds atomically and returns the old number.
#pragma once

#include <cstdint>

#include "../number.h"

namespace ultramem::cuda {

// Score and position in one integer that sorts as both: greater is better, and of equal scores the smaller position
// is. A NaN ranks with +infinity, -0 with 0.
ULTRAMEM_BLOCK std::uint32_t rank_of(float score) {
  std::uint32_t bits = score == score ? to_bits(score) : 0x7f800000u;
  if (bits == 0x80000000u) bits = 0;
  // Positive floats sort as their bits do, negative ones in reverse and below.
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

ULTRAMEM_BLOCK std::uint64_t key_of(std::uint32_t rank, std::uint32_t position) {
  return static_cast<std::uint64_t>(rank) << 32 | static_cast<std::uint32_t>(~position);
}

ULTRAMEM_BLOCK std::uint32_t position_of(std::uint64_t key) { return ~static_cast<std::uint32_t>(key); }

// The smallest power of two that is at least `count`: what `select` needs room for.
ULTRAMEM_BOTH std::int64_t padded(std::int64_t count) {
  std::int64_t size = 1;
  while (size < count) size *= 2;
  return size;
}

// What the threads share while they select.
struct Selection {
  static constexpr std::uint32_t kBins = 256;
  static constexpr std::uint32_t kGroup = 16;  // bins summed together, so that no thread adds up all 256

  std::uint32_t histogram[kBins];
  std::uint32_t groups[kBins / kGroup];
  std::uint64_t decided;    // the bits of the threshold known so far, the others 0
  std::uint64_t mask;       // which bits those are
  std::uint32_t wanted;     // keys still to be found among those that agree with `decided`
  std::uint32_t remaining;  // keys that agree with it
  std::uint32_t taken;
};

// Of the bins counted, the one in which the `wanted`-th best key lies becomes the next eight bits.
template <typename Block>
ULTRAMEM_BLOCK void decide(const Block& block, Selection& s, int shift) {
  constexpr std::uint32_t kGroup = Selection::kGroup, kGroups = Selection::kBins / kGroup;
  const std::uint32_t wanted = s.wanted;  // read a phase before the one that changes it
  block.each(kGroups, [&](std::uint32_t g) {
    std::uint32_t sum = 0;
    for (std::uint32_t b = 0; b < kGroup; ++b) sum += s.histogram[g * kGroup + b];
    s.groups[g] = sum;
  });
  block.each(Selection::kBins, [&](std::uint32_t bin) {
    std::uint32_t above = 0;
    for (std::uint32_t g = bin / kGroup + 1; g < kGroups; ++g) above += s.groups[g];
    for (std::uint32_t b = bin + 1; b % kGroup != 0; ++b) above += s.histogram[b];
    if (above >= wanted || above + s.histogram[bin] < wanted) return;
    s.decided |= static_cast<std::uint64_t>(bin) << shift;
    s.mask |= static_cast<std::uint64_t>(Selection::kBins - 1) << shift;
    s.wanted = wanted - above;
    s.remaining = s.histogram[bin];
  });
}

// After it exactly `keep` of the keys key(0..count) are at least s.decided. Keys differ, 1 <= keep <= count.
template <typename Block, typename Key>
ULTRAMEM_BLOCK void find_threshold(const Block& block, const Key& key, std::uint32_t count, std::uint32_t keep,
                                   Selection& s) {
  block.once([&] {
    s.decided = s.mask = 0;
    s.wanted = keep;
    s.remaining = count;
    s.taken = 0;
  });
  for (int shift = 56; shift >= 0 && s.remaining != s.wanted; shift -= 8) {
    block.each(Selection::kBins, [&](std::uint32_t bin) { s.histogram[bin] = 0; });
    block.each(count, [&](std::uint32_t i) {
      const std::uint64_t candidate = key(i);
      if ((candidate & s.mask) != s.decided) return;
      block.add(&s.histogram[candidate >> shift & (Selection::kBins - 1)], 1u);
    });
    decide(block, s, shift);
  }
}

// Sorts keys[0, size), greatest first; size is a power of two.
template <typename Block>
ULTRAMEM_BLOCK void sort(const Block& block, std::uint64_t* keys, std::uint32_t size) {
  for (std::uint32_t run = 2; run <= size; run *= 2) {
    for (std::uint32_t stride = run / 2; stride > 0; stride /= 2) {
      block.each(size / 2, [&](std::uint32_t pair) {
        const std::uint32_t a = pair / stride * 2 * stride + pair % stride, b = a + stride;
        const bool descending = (a & run) == 0;
        const std::uint64_t first = keys[a], second = keys[b];
        if ((first < second) != descending) return;
        keys[a] = second;
        keys[b] = first;
      });
    }
  }
}

// The best `keep` of key(0..count) into best[0, padded(keep)), best first.
template <typename Block, typename Key>
ULTRAMEM_BLOCK void select(const Block& block, const Key& key, std::uint32_t count, std::uint32_t keep, Selection& s,
                           std::uint64_t* best) {
  find_threshold(block, key, count, keep, s);
  const auto size = static_cast<std::uint32_t>(padded(keep));
  block.each(size - keep, [&](std::uint32_t i) { best[keep + i] = 0; });
  block.each(count, [&](std::uint32_t i) {
    const std::uint64_t candidate = key(i);
    if (candidate >= s.decided) best[block.add(&s.taken, 1u)] = candidate;
  });
  sort(block, best, size);
}

}  // namespace ultramem::cuda
