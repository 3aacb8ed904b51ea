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

#include "attention_scratch.h"
#include "span.h"

namespace ultramem {
namespace {

// 2^x for x <= 0, 0 below 2^-126: a polynomial of the fraction in [-1/2, 1/2], within 2e-9, times a power of two.
inline Vector exp2(Vector x) {
  constexpr float kLeast = -126.0f, kToWhole = 0x1.8p23f;  // adding it leaves no bits for a fraction
  const Vector held = Simd::larger(Simd::splat(kLeast), x);
  const Vector whole = Simd::add(held, Simd::splat(kToWhole));
  const Vector fraction = Simd::add(held, Simd::multiply_add(Simd::splat(-1), whole, Simd::splat(kToWhole)));
  constexpr float kFactors[] = {0x1.5f456ap-10f, 0x1.3b2dbcp-7f, 0x1.c6aed4p-5f, 0x1.ebfbdap-3f, 0x1.62e430p-1f, 1.0f};
  Vector sum = Simd::splat(0x1.41d32ep-13f);
  for (const float factor : kFactors) sum = Simd::multiply_add(sum, fraction, Simd::splat(factor));
  const Vector zero = Simd::splat(0);
  const Vector power =
      Simd::multiply_add(Simd::power_of_two(whole), Simd::count_greater(zero, x, Simd::splat(kLeast)), zero);
  return Simd::multiply_add(sum, power, zero);
}

template <typename T>
class Attention {
 public:
  Attention(const UltramemAttention& problem, void* scratch)
      : p_(problem), s_(problem, scratch), most_places_(most_places(problem)) {}

  void run(UltramemRange items) {
    if (items.begin == items.end) return;
    Block now = first_of(items.begin);
    request_rest(keys_of(now), 0);
    begin(now.item);
    while (now.item < items.end) {
      const Block next = following(now, items.end);
      const Rows keys = keys_of(now), values = values_of(now);
      score(keys, values);
      weigh(now);
      add(values, next.item < items.end ? keys_of(next) : values);
      if (next.item != now.item) finish(now.item);
      if (next.item != now.item && next.item < items.end) begin(next.item);
      now = next;
    }
  }

 private:
  static constexpr int kMostHeads = Simd::kMostPairs / 2;
  static constexpr std::int64_t kTogether = 4;  // places whose scores are summed side by side
  static constexpr std::int64_t kPerLine = 64 / static_cast<std::int64_t>(sizeof(T));

  // Places [first, last) of `item`, a group of heads of one sequence; its blocks take `size` places each up to `end`.
  struct Block {
    std::int64_t item;
    std::int64_t first;
    std::int64_t last;
    std::int64_t size;
    std::int64_t end;
  };

  // A block's keys or values.
  struct Rows {
    const T* data;
    std::int64_t stride;
    std::int64_t count;
    std::int64_t width;

    // The last row, where there is none so far.
    const T* at(std::int64_t row) const {
      const std::int64_t last = count > 0 ? count - 1 : 0;
      return data + (row < last ? row : last) * stride;
    }
  };

  // What is asked for ahead is about a block: enough to hide memory latency, and little enough to stay in the cache.
  static std::int64_t most_places(const UltramemAttention& p) {
    constexpr std::int64_t kBytes = 8192, kFewest = 16;
    const std::int64_t row = (p.width > p.value_width ? p.width : p.value_width) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t places = kBytes / row / kFewest * kFewest;
    if (places < kFewest) return kFewest;
    return places < AttentionScratch::kMostPlaces ? places : AttentionScratch::kMostPlaces;
  }

  const std::uint8_t* mask_of(std::int64_t item) const {
    return p_.mask == nullptr ? nullptr : p_.mask + item / p_.kv_heads * p_.mask_stride;
  }

  // Blocks of even size: a short last one would leave no time for the next item's keys to come.
  Block first_of(std::int64_t item) const {
    std::int64_t first = 0, end = p_.places;
    if (const std::uint8_t* mask = mask_of(item)) {
      while (first < end && mask[first] == 0) ++first;
      while (first < end && mask[end - 1] == 0) --end;
    }
    const std::int64_t count = (end - first + most_places_ - 1) / most_places_;
    const std::int64_t even = count > 0 ? (end - first + count - 1) / count : 0;
    const std::int64_t size = (even + kTogether - 1) / kTogether * kTogether;
    return {item, first, first + size < end ? first + size : end, size, end};
  }

  Block following(const Block& block, std::int64_t items_end) const {
    if (block.last == block.end) {
      return block.item + 1 < items_end ? first_of(block.item + 1) : Block{items_end, 0, 0, 0, 0};
    }
    const std::int64_t last = block.last + block.size;
    return {block.item, block.last, last < block.end ? last : block.end, block.size, block.end};
  }

  const T* find(const UltramemHeads& heads, std::int64_t batch, std::int64_t head, std::int64_t place) const {
    return static_cast<const T*>(heads.data) + batch * heads.batch_stride + head * heads.head_stride +
           place * heads.place_stride;
  }

  Rows rows_of(const UltramemHeads& heads, const Block& block, std::int64_t width) const {
    const T* data = find(heads, block.item / p_.kv_heads, block.item % p_.kv_heads, block.first);
    return {data, heads.place_stride, block.last - block.first, width};
  }
  Rows keys_of(const Block& block) const { return rows_of(p_.k, block, p_.width); }
  Rows values_of(const Block& block) const { return rows_of(p_.v, block, p_.value_width); }

  static void request_rest(const Rows& rows, std::int64_t from) {
    for (; from < rows.count; ++from) {
      prefetch(rows.at(from), rows.width * static_cast<std::int64_t>(sizeof(T)));
    }
  }

  // Scores count in 1 / log2(e), so that weights are powers of two.
  void begin(std::int64_t item) {
    constexpr float kLog2E = 1.44269504088896341f;
    const Vector scale = Simd::splat(p_.scale * kLog2E), zero = Simd::splat(0);
    for (std::int64_t h = 0; h < s_.group; ++h) {
      float* q = s_.q + h * s_.q_stride;
      const std::int64_t head = item % p_.kv_heads * s_.group + h;
      convert(find(p_.q, item / p_.kv_heads, head, 0), q, p_.width);
      for (std::int64_t i = p_.width; i < s_.q_stride; ++i) q[i] = 0;
      for (std::int64_t i = 0; i < s_.q_stride; i += Simd::kWidth) {
        Simd::store(q + i, Simd::multiply_add(scale, Simd::load(q + i), zero));
      }
      s_.largest[h] = -FLT_MAX;  // not -infinity: differences of two of those are no number
      s_.total[h] = 0;
    }
    std::memset(s_.sums, 0, static_cast<std::size_t>(s_.group * s_.sums_stride) * sizeof(float));
  }

  void finish(std::int64_t item) {
    for (std::int64_t h = 0; h < s_.group; ++h) {
      float* sums = s_.sums + h * s_.sums_stride;
      multiply(sums, 1 / s_.total[h]);
      const std::int64_t head = item / p_.kv_heads * p_.heads + item % p_.kv_heads * s_.group + h;
      convert(sums, static_cast<T*>(p_.output) + head * p_.value_width, p_.value_width);
    }
  }

  void multiply(float* sums, float factor) const {
    const Vector factors = Simd::splat(factor), zero = Simd::splat(0);
    for (std::int64_t i = 0; i < s_.sums_stride; i += Simd::kWidth) {
      Simd::store(sums + i, Simd::multiply_add(factors, Simd::load(sums + i), zero));
    }
  }

  // body(kHeads, head) for as many heads together as registers hold, then for half as many.
  template <int kHeads = kMostHeads, typename Body>
  void for_each_heads(const Body& body, std::int64_t head = 0) const {
    for (; head + kHeads <= s_.group; head += kHeads) body(std::integral_constant<int, kHeads>{}, head);
    if constexpr (kHeads > 1) for_each_heads<kHeads / 2>(body, head);
  }

  float* scores_of(std::int64_t head) const { return s_.scores + head * AttentionScratch::kMostPlaces; }

  void score(const Rows& keys, const Rows& ahead) {
    for_each_heads([&](auto heads, std::int64_t head) {
      const Rows& asked = head == 0 ? ahead : keys;
      for (std::int64_t place = 0; place < keys.count; place += kTogether) {
        score_places<heads.value>(head, place, keys, asked);
      }
    });
    request_rest(ahead, keys.count);
  }

  template <int kHeads>
  void score_places(std::int64_t head, std::int64_t place, const Rows& keys, const Rows& ahead) {
    const T *rows[kTogether], *asked[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      rows[i] = keys.at(place + i);
      asked[i] = ahead.at(place + i);
    }
    Vector sums[kHeads][kTogether];
    for (auto& each : sums) {
      for (Vector& sum : each) sum = Simd::splat(0);
    }
    const float* q = s_.q + head * s_.q_stride;
    const auto step = [&](std::int64_t column, const auto& load) {
      Vector values[kTogether];
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) values[i] = load(rows[i] + column);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const Vector factors = Simd::load(q + h * s_.q_stride + column);
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) sums[h][i] = Simd::multiply_add(values[i], factors, sums[h][i]);
      }
    };
    std::int64_t column = 0;
    for (; column + kPerLine <= keys.width; column += kPerLine) {
      for (const T* from : asked) __builtin_prefetch(from + column);
#pragma GCC unroll 4
      for (std::int64_t i = 0; i < kPerLine; i += Simd::kWidth) step(column + i, load_whole<T>);
    }
    for (std::int64_t at = column; at < ahead.width; at += kPerLine) {
      for (const T* from : asked) __builtin_prefetch(from + at);
    }
    for (; column + Simd::kWidth <= keys.width; column += Simd::kWidth) step(column, load_whole<T>);
    if (const std::int64_t left = keys.width - column; left > 0) {
      step(column, [left](const T* from) { return load_partial(from, left); });
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) Simd::store_four_sums(sums[h], scores_of(head + h) + place);
  }

  // Scores become weights by the largest so far.
  void weigh(const Block& block) {
    const std::uint8_t* mask = mask_of(block.item);
    const std::int64_t count = block.last - block.first;
    const bool whole =
        mask == nullptr || std::memchr(mask + block.first, 0, static_cast<std::size_t>(count)) == nullptr;
    for (std::int64_t h = 0; h < s_.group; ++h) {
      float* scores = scores_of(h);
      std::int64_t end = count;
      for (; end % Simd::kWidth != 0; ++end) scores[end] = -__builtin_inff();
      for (std::int64_t i = 0; !whole && i < count; ++i) {
        if (mask[block.first + i] == 0) scores[i] = -__builtin_inff();
      }
      raise_largest(h, end);
      const Vector top = Simd::splat(-s_.largest[h]);
      Vector total = Simd::splat(0);
      for (std::int64_t i = 0; i < end; i += Simd::kWidth) {
        const Vector weights = exp2(Simd::add(Simd::load(scores + i), top));
        Simd::store(scores + i, weights);
        total = Simd::add(total, weights);
      }
      s_.total[h] += Simd::sum(total);
    }
  }

  void raise_largest(std::int64_t head, std::int64_t count) {
    const float* scores = scores_of(head);
    Vector all = Simd::splat(s_.largest[head]);
    for (std::int64_t i = 0; i < count; i += Simd::kWidth) all = Simd::larger(all, Simd::load(scores + i));
    const float top = Simd::largest(all);
    if (top == s_.largest[head]) return;
    float shrunk[Simd::kWidth];
    Simd::store(shrunk, exp2(Simd::splat(s_.largest[head] - top)));
    multiply(s_.sums + head * s_.sums_stride, shrunk[0]);
    s_.total[head] *= shrunk[0];
    s_.largest[head] = top;
  }

  void add(const Rows& values, const Rows& ahead) {
    for_each_heads([&](auto heads, std::int64_t head) {
      add_columns<heads.value, 2 * Simd::kMostPairs / heads.value>(head, 0, values, head == 0 ? ahead : values);
    });
    for (std::int64_t row = 0; ahead.width > values.width && row < ahead.count; ++row) {
      prefetch(ahead.at(row) + values.width, (ahead.width - values.width) * static_cast<std::int64_t>(sizeof(T)));
    }
    request_rest(ahead, values.count);
  }

  template <int kHeads, int kVectors>
  void add_columns(std::int64_t head, std::int64_t column, const Rows& values, const Rows& ahead) {
    constexpr std::int64_t kTile = kVectors * Simd::kWidth;
    for (; column + kTile <= values.width; column += kTile) {
      add_tile<kHeads, kVectors>(head, column, values, ahead, load_whole<T>);
    }
    if constexpr (kVectors > 1) return add_columns<kHeads, kVectors / 2>(head, column, values, ahead);
    if (const std::int64_t left = values.width - column; left > 0) {
      add_tile<kHeads, 1>(head, column, values, ahead, [left](const T* from) { return load_partial(from, left); });
    }
  }

  template <int kHeads, int kVectors, typename Load>
  void add_tile(std::int64_t head, std::int64_t column, const Rows& values, const Rows& ahead, const Load& load) {
    const float* weights = scores_of(head);
    float* to = s_.sums + head * s_.sums_stride + column;
    Vector sums[kHeads][kVectors];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) sums[h][i] = Simd::load(to + h * s_.sums_stride + i * Simd::kWidth);
    }
    for (std::int64_t place = 0; place < values.count; ++place) {
      const T *row = values.data + place * values.stride + column, *asked = ahead.at(place) + column;
      for (std::int64_t i = 0; i < kVectors * Simd::kWidth; i += kPerLine) __builtin_prefetch(asked + i);
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) {
        const Vector numbers = load(row + i * Simd::kWidth);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          const Vector weight = Simd::splat(weights[h * AttentionScratch::kMostPlaces + place]);
          sums[h][i] = Simd::multiply_add(weight, numbers, sums[h][i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) Simd::store(to + h * s_.sums_stride + i * Simd::kWidth, sums[h][i]);
    }
  }

  const UltramemAttention& p_;
  AttentionScratch s_;
  std::int64_t most_places_;
};

template <typename T>
UltramemStatus attention(const UltramemAttention& problem, UltramemRange items, void* scratch) {
  Attention<T>(problem, scratch).run(items);
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
