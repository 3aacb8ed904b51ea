// How the scratch of attention is laid out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ultramem_kernels.h"

namespace ultramem {
namespace {

// Numbers within one block, in the order in which they lie; each head's start on a line of the cache. With a null base
// it only measures.
struct AttentionScratch {
  static constexpr std::int64_t kMostPlaces = 64;  // whose scores are held at once

  AttentionScratch(const UltramemAttention& problem, void* base)
      : group(problem.heads / problem.kv_heads),
        q_stride(whole_lines(problem.width)),
        sums_stride(whole_lines(problem.value_width)) {
    auto* at = static_cast<float*>(base);
    const auto take = [&](std::int64_t count) {
      float* taken = at;
      bytes += static_cast<std::size_t>(count) * sizeof(float);
      if (at != nullptr) at += count;
      return taken;
    };
    q = take(group * q_stride);
    scores = take(group * kMostPlaces);
    sums = take(group * sums_stride);
    largest = take(whole_lines(group));
    total = take(whole_lines(group));
  }

  static std::int64_t whole_lines(std::int64_t count) { return (count + 15) / 16 * 16; }

  std::int64_t group;  // heads that share keys and values
  std::int64_t q_stride;
  std::int64_t sums_stride;
  std::size_t bytes = 0;
  float* q;        // [group, q_stride]: queries times scale, zeros behind
  float* scores;   // [group, kMostPlaces]: of a block's places, then their weights
  float* sums;     // [group, sums_stride]: weighted values
  float* largest;  // [group]: score so far
  float* total;    // [group]: of the weights so far
};

}  // namespace
}  // namespace ultramem
