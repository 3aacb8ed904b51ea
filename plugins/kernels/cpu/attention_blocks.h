// In which blocks of places attention reads keys and values.
#pragma once

#include <cstdint>

#include "attention_scratch.h"

namespace ultramem {
namespace {

// Places [first, last) of `item`: of one sequence, for the heads that share a key-value head. The item's blocks take
// `size` places each, up to `end`.
struct PlaceBlock {
  std::int64_t item;
  std::int64_t first;
  std::int64_t last;
  std::int64_t size;
  std::int64_t end;
};

// The blocks of `items`, one after another. Neither they nor sums over them depend on how items are cut.
class PlaceBlocks {
 public:
  PlaceBlocks(const UltramemAttention& problem, std::int64_t number_bytes, UltramemRange items)
      : p_(problem), most_places_(most_places(problem, number_bytes)), items_(items) {}

  PlaceBlock first() const { return first_of(items_.begin); }

  PlaceBlock after(const PlaceBlock& block) const {
    return block.last == block.end ? first_of(block.item + 1) : cut(block.item, block.last, block.size, block.end);
  }

  bool has(const PlaceBlock& block) const { return block.item < items_.end; }

  // Of the item's places; null where all may be seen.
  const std::uint8_t* mask(std::int64_t item) const {
    return p_.mask == nullptr ? nullptr : p_.mask + item / p_.kv_heads * p_.mask_stride;
  }

 private:
  static constexpr std::int64_t kFewest = 16;

  // A block's values are asked for while its keys are read: enough to hide memory latency, and little enough that both
  // stay in the first-level cache.
  static std::int64_t most_places(const UltramemAttention& p, std::int64_t number_bytes) {
    constexpr std::int64_t kBytes = 16384, kMost = AttentionScratch::kMostPlaces;
    const std::int64_t row_bytes = (p.width > p.value_width ? p.width : p.value_width) * number_bytes;
    const std::int64_t places = kBytes / row_bytes / kFewest * kFewest;
    return places < kFewest ? kFewest : places < kMost ? places : kMost;
  }

  // Blocks of even size: a short last one would leave no time for the next keys to come.
  PlaceBlock first_of(std::int64_t item) const {
    if (item >= items_.end) return {item, 0, 0, 0, 0};
    std::int64_t first = 0, end = p_.places;
    if (const std::uint8_t* seen = mask(item)) {
      while (first < end && seen[first] == 0) ++first;
      while (first < end && seen[end - 1] == 0) --end;
    }
    const std::int64_t count = (end - first + most_places_ - 1) / most_places_;
    const std::int64_t even = count > 0 ? (end - first + count - 1) / count : 0;
    return cut(item, first, (even + kFewest - 1) / kFewest * kFewest, end);
  }

  static PlaceBlock cut(std::int64_t item, std::int64_t first, std::int64_t size, std::int64_t end) {
    return {item, first, first + size < end ? first + size : end, size, end};
  }

  const UltramemAttention& p_;
  std::int64_t most_places_;
  UltramemRange items_;
};

// A block's keys or values.
template <typename T>
struct PlaceRows {
  const T* data;
  std::int64_t stride;
  std::int64_t count;
  std::int64_t width;

  const T* at(std::int64_t row) const { return data + row * stride; }
};

// Asks for the lines of rows one by one, in the order in which they lie: the memory gives them soonest.
class LineRequests {
 public:
  template <typename T>
  explicit LineRequests(const PlaceRows<T>& rows)
      : row_(reinterpret_cast<std::uintptr_t>(rows.data)),
        stride_(static_cast<std::uintptr_t>(rows.stride) * sizeof(T)),
        row_bytes_(static_cast<std::uintptr_t>(rows.width) * sizeof(T)),
        rows_left_(rows.count) {
    if (rows.stride == rows.width && rows.count > 0) {  // as good as one row
      row_bytes_ *= static_cast<std::uintptr_t>(rows.count);
      rows_left_ = 1;
    }
  }

  // Of nothing once all are asked for.
  void next() {
    if (line_ >= end_ && !begin_row()) return;
    __builtin_prefetch(reinterpret_cast<const void*>(line_));
    line_ += kLine;
  }

  void rest() {
    while (line_ < end_ || rows_left_ > 0) next();
  }

 private:
  static constexpr std::uintptr_t kLine = 64;

  bool begin_row() {
    if (rows_left_ == 0) return false;
    line_ = row_ / kLine * kLine;
    end_ = row_ + row_bytes_;
    row_ += stride_;
    --rows_left_;
    return true;
  }

  std::uintptr_t row_, stride_, row_bytes_;
  std::int64_t rows_left_;
  std::uintptr_t line_ = 0, end_ = 0;
};

}  // namespace
}  // namespace ultramem
