// Attention of one position on one instruction set.
//
//   q [B, heads, width], k [B, kv_heads, places, width], v [B, kv_heads, places, value_width], all of T
//   output [B, heads, value_width] of T
//
// In one pass (as FlashAttention, Dao et al., 2022): a block of places gives scores, their weights by the largest score
// so far, and sums of values, which shrink when a larger score comes. While a block's keys are read its values are
// asked for, line by line, and while its values are read the keys of the next block are. All heads of a group take
// their part of a block while it lies in the first-level cache.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention_blocks.h"
#include "exp2.h"

namespace ultramem {
namespace {

template <typename T>
class Attention {
 public:
  Attention(const UltramemAttention& problem, UltramemRange items, void* scratch)
      : p_(problem), s_(problem, scratch), blocks_(problem, sizeof(T), items) {}

  void run() {
    PlaceBlock now = blocks_.first();
    if (!blocks_.has(now)) return;
    LineRequests(keys_of(now)).rest();
    begin(now.item);
    while (blocks_.has(now)) {
      const PlaceBlock next = blocks_.after(now);
      const Rows keys = keys_of(now), values = values_of(now);
      score(keys, LineRequests(values));
      weigh(now);
      add(values, LineRequests(blocks_.has(next) ? keys_of(next) : Rows{}));
      if (next.item != now.item) {
        finish(now.item);
        if (blocks_.has(next)) begin(next.item);
      }
      now = next;
    }
  }

 private:
  using Rows = PlaceRows<T>;
  static constexpr int kMostHeads = Simd::kMostPairs / 2;  // whose sums of kTogether places registers hold
  static constexpr int kTogether = 4;
  static constexpr std::int64_t kMostPlaces = AttentionScratch::kMostPlaces;
  static constexpr std::int64_t kPerLine = 64 / static_cast<std::int64_t>(sizeof(T));

  const T* find(const UltramemHeads& heads, std::int64_t batch, std::int64_t head, std::int64_t place) const {
    return static_cast<const T*>(heads.data) + batch * heads.batch_stride + head * heads.head_stride +
           place * heads.place_stride;
  }

  Rows rows_of(const UltramemHeads& heads, const PlaceBlock& block, std::int64_t width) const {
    const T* data = find(heads, block.item / p_.kv_heads, block.item % p_.kv_heads, block.first);
    return {data, heads.place_stride, block.last - block.first, width};
  }
  Rows keys_of(const PlaceBlock& block) const { return rows_of(p_.k, block, p_.width); }
  Rows values_of(const PlaceBlock& block) const { return rows_of(p_.v, block, p_.value_width); }

  // Scores count in 1 / log2(e), so that weights are powers of two.
  void begin(std::int64_t item) {
    constexpr float kLog2E = 1.44269504088896341f;
    for (std::int64_t h = 0; h < s_.group; ++h) {
      float* q = s_.q + h * s_.q_stride;
      convert(find(p_.q, item / p_.kv_heads, item % p_.kv_heads * s_.group + h, 0), q, p_.width);
      for (std::int64_t i = p_.width; i < s_.q_stride; ++i) q[i] = 0;
      multiply(q, p_.scale * kLog2E, s_.q_stride);
      s_.largest[h] = -FLT_MAX;  // not -infinity: a difference of two of those is no number
      s_.total[h] = 0;
    }
    std::memset(s_.sums, 0, static_cast<std::size_t>(s_.group * s_.sums_stride) * sizeof(float));
  }

  void finish(std::int64_t item) {
    for (std::int64_t h = 0; h < s_.group; ++h) {
      float* sums = s_.sums + h * s_.sums_stride;
      multiply(sums, 1 / s_.total[h], s_.sums_stride);
      const std::int64_t head = item / p_.kv_heads * p_.heads + item % p_.kv_heads * s_.group + h;
      convert(sums, static_cast<T*>(p_.output) + head * p_.value_width, p_.value_width);
    }
  }

  // Whole vectors of numbers.
  static void multiply(float* numbers, float factor, std::int64_t count) {
    const Vector factors = Simd::splat(factor), zero = Simd::splat(0);
    for (std::int64_t i = 0; i < count; i += Simd::kWidth) {
      Simd::store(numbers + i, Simd::multiply_add(factors, Simd::load(numbers + i), zero));
    }
  }

  // body(kHeads, head) for as many heads together as registers hold, then for half as many.
  template <int kHeads = kMostHeads, typename Body>
  void for_each_heads(const Body& body, std::int64_t head = 0) const {
    for (; head + kHeads <= s_.group; head += kHeads) body(std::integral_constant<int, kHeads>{}, head);
    if constexpr (kHeads > 1) for_each_heads<kHeads / 2>(body, head);
  }

  void score(const Rows& keys, LineRequests ahead) const {
    for_each_heads([&](auto heads, std::int64_t head) { ahead = score_heads<heads.value>(head, keys, ahead); });
    ahead.rest();
  }

  // Sums of kTogether places hide one another's latency. Returns what is left to ask for.
  template <int kHeads>
  LineRequests score_heads(std::int64_t head, const Rows& keys, LineRequests ahead) const {
    float* scores = s_.scores + head * kMostPlaces;
    std::int64_t place = 0;
    for (; place + kTogether <= keys.count; place += kTogether) {
      Vector sums[kHeads][kTogether] = {};
      score_places<kHeads, kTogether>(head, place, keys, ahead, sums);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) Simd::store_four_sums(sums[h], scores + h * kMostPlaces + place);
    }
    for (; place < keys.count; ++place) {
      Vector sums[kHeads][1] = {};
      score_places<kHeads, 1>(head, place, keys, ahead, sums);
      for (int h = 0; h < kHeads; ++h) scores[h * kMostPlaces + place] = Simd::sum(sums[h][0]);
    }
    return ahead;
  }

  // Lines are asked for between products: several at once take longer.
  template <int kHeads, int kPlaces>
  void score_places(std::int64_t head, std::int64_t place, const Rows& keys, LineRequests& ahead,
                    Vector (&sums)[kHeads][kPlaces]) const {
    const float* q = s_.q + head * s_.q_stride;
    const T* row = keys.at(place);
    const auto step = [&](std::int64_t column, bool asks, const auto& load) {
#pragma GCC unroll 4
      for (int i = 0; i < kPlaces; ++i) {
        if (asks) ahead.next();
        const Vector numbers = load(row + i * keys.stride + column);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          sums[h][i] = Simd::multiply_add(numbers, Simd::load(q + h * s_.q_stride + column), sums[h][i]);
        }
      }
    };
    std::int64_t column = 0;
    for (; column + kPerLine <= keys.width; column += kPerLine) {
#pragma GCC unroll 4
      for (std::int64_t i = 0; i < kPerLine; i += Simd::kWidth) step(column + i, i == 0, load_whole<T>);
    }
    for (; column + Simd::kWidth <= keys.width; column += Simd::kWidth) step(column, false, load_whole<T>);
    if (const std::int64_t left = keys.width - column; left > 0) {
      step(column, false, [left](const T* from) { return load_partial(from, left); });
    }
  }

  // Scores become weights.
  void weigh(const PlaceBlock& block) {
    const std::int64_t count = block.last - block.first;
    for (std::int64_t h = 0; h < s_.group; ++h) {
      float* scores = s_.scores + h * kMostPlaces;
      std::int64_t end = count;
      for (; end % Simd::kWidth != 0; ++end) scores[end] = -__builtin_inff();
      hide(block, scores);
      raise_largest(h, end);
      const Vector less = Simd::splat(-s_.largest[h]);
      Vector total = Simd::splat(0);
      for (std::int64_t i = 0; i < end; i += Simd::kWidth) {
        const Vector weights = exp2(Simd::add(Simd::load(scores + i), less));
        Simd::store(scores + i, weights);
        total = Simd::add(total, weights);
      }
      s_.total[h] += Simd::sum(total);
    }
  }

  void hide(const PlaceBlock& block, float* scores) const {
    const std::uint8_t* seen = blocks_.mask(block.item);
    const std::int64_t count = block.last - block.first;
    if (seen == nullptr || std::memchr(seen + block.first, 0, static_cast<std::size_t>(count)) == nullptr) return;
    for (std::int64_t i = 0; i < count; ++i) {
      if (seen[block.first + i] == 0) scores[i] = -__builtin_inff();
    }
  }

  // What was summed by a smaller score shrinks.
  void raise_largest(std::int64_t head, std::int64_t count) {
    const float* scores = s_.scores + head * kMostPlaces;
    const float before = s_.largest[head];
    Vector largest = Simd::splat(before);
    for (std::int64_t i = 0; i < count; i += Simd::kWidth) largest = Simd::larger(largest, Simd::load(scores + i));
    s_.largest[head] = Simd::largest(largest);
    if (s_.largest[head] == before) return;
    float factor[Simd::kWidth];
    Simd::store(factor, exp2(Simd::splat(before - s_.largest[head])));
    multiply(s_.sums + head * s_.sums_stride, factor[0], s_.sums_stride);
    s_.total[head] *= factor[0];
  }

  void add(const Rows& values, LineRequests ahead) const {
    for_each_heads([&](auto heads, std::int64_t head) {
      ahead = add_columns<heads.value, 2 * Simd::kMostPairs / heads.value>(head, 0, values, ahead);
    });
    ahead.rest();
  }

  // Tiles of kVectors vectors as long as they fit, then of half as many.
  template <int kHeads, int kVectors>
  LineRequests add_columns(std::int64_t head, std::int64_t column, const Rows& values, LineRequests ahead) const {
    constexpr std::int64_t kTile = kVectors * Simd::kWidth;
    for (; column + kTile <= values.width; column += kTile) {
      ahead = add_tile<kHeads, kVectors>(head, column, values, ahead, load_whole<T>);
    }
    if constexpr (kVectors > 1) return add_columns<kHeads, kVectors / 2>(head, column, values, ahead);
    const std::int64_t left = values.width - column;
    if (left <= 0) return ahead;
    return add_tile<kHeads, 1>(head, column, values, ahead, [left](const T* from) { return load_partial(from, left); });
  }

  template <int kHeads, int kVectors, typename Load>
  LineRequests add_tile(std::int64_t head, std::int64_t column, const Rows& values, LineRequests ahead,
                        const Load& load) const {
    const float* weights = s_.scores + head * kMostPlaces;
    float* to = s_.sums + head * s_.sums_stride + column;
    Vector sums[kHeads][kVectors];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) sums[h][i] = Simd::load(to + h * s_.sums_stride + i * Simd::kWidth);
    }
    for (std::int64_t place = 0; place < values.count; ++place) {
      const T* row = values.at(place) + column;
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) {
        if (i * Simd::kWidth % kPerLine == 0) ahead.next();
        const Vector numbers = load(row + i * Simd::kWidth);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          sums[h][i] = Simd::multiply_add(Simd::splat(weights[h * kMostPlaces + place]), numbers, sums[h][i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) Simd::store(to + h * s_.sums_stride + i * Simd::kWidth, sums[h][i]);
    }
    return ahead;
  }

  const UltramemAttention& p_;
  AttentionScratch s_;
  PlaceBlocks blocks_;
};

template <typename T>
UltramemStatus attention(const UltramemAttention& problem, UltramemRange items, void* scratch) {
  Attention<T>(problem, items, scratch).run();
  return {ULTRAMEM_OK, 0, 0, 0};
}

inline UltramemStatus attention_any(const UltramemAttention& problem, UltramemRange items, void* scratch) {
  switch (problem.type) {
    case ULTRAMEM_FLOAT32:
      return attention<float>(problem, items, scratch);
    case ULTRAMEM_FLOAT16:
      return attention<Half>(problem, items, scratch);
    case ULTRAMEM_BFLOAT16:
      return attention<BFloat16>(problem, items, scratch);
    default:
      return {ULTRAMEM_UNSUPPORTED_TYPE, 0, 0, 0};
  }
}

}  // namespace
}  // namespace ultramem
