// What SparseLookup and SparseGate share: checking addresses, and reading rows a group at a time so that the rows of
// the next group are on their way while this one's are summed.
#pragma once

#include <cstdint>

#include "../ultramem_kernels.h"
#include "span.h"

namespace ultramem {
namespace {

// The first of the flat positions [begin, end) of addresses [tokens, slots] that lies outside [0, limit), or OK.
inline UltramemStatus check_addresses(const std::int64_t* addresses, std::int64_t begin, std::int64_t end,
                                      std::int64_t slots, std::int64_t limit) {
  const auto outside = [limit](std::int64_t address) {
    return static_cast<std::uint64_t>(address) >= static_cast<std::uint64_t>(limit);
  };
  bool any = false;  // without a way out, the loop takes a vector of addresses at a time
  for (std::int64_t at = begin; at < end; ++at) any |= outside(addresses[at]);
  for (std::int64_t at = begin; any && at < end; ++at) {
    if (outside(addresses[at])) return {ULTRAMEM_BAD_ADDRESS, at / slots, at % slots, addresses[at]};
  }
  return {ULTRAMEM_OK, 0, 0, 0};
}

// Rows at consecutive flat positions of the addresses.
struct RowGroup {
  static constexpr std::int64_t kMost = 64;

  std::int64_t count = 0;
  std::int64_t position[kMost];
  std::int64_t row[kMost];
  std::int64_t block[kMost];  // filled where there are virtual blocks
};

// How numbers of V are pointed at, and how many bytes so many take.
template <typename V>
struct Stored {
  using Cursor = const V*;
  static Cursor at(const void* data, std::int64_t element) { return static_cast<const V*>(data) + element; }
  static const void* bytes_at(Cursor from) { return from; }
  static constexpr std::int64_t bytes(std::int64_t count) { return count * static_cast<std::int64_t>(sizeof(V)); }
};

template <>
struct Stored<Int4> {
  using Cursor = Int4Cursor;
  static Cursor at(const void* data, std::int64_t element) {
    return {static_cast<const std::uint8_t*>(data) + element / 2, element % 2};
  }
  static const void* bytes_at(Cursor from) { return from.byte(); }
  static constexpr std::int64_t bytes(std::int64_t count) { return (count + 1) / 2; }
};

// Some columns of the rows that checked addresses name.
template <typename V>
class TableRows {
 public:
  using Cursor = typename Stored<V>::Cursor;

  // `run` rows at a time belong together: groups divide them evenly.
  TableRows(const UltramemTable& table, const std::int64_t* addresses, UltramemRange columns, std::int64_t run,
            bool virtual_blocks)
      : table_(table),
        addresses_(addresses),
        columns_(columns),
        group_size_(even_part(run, most_rows(Stored<V>::bytes(columns.end - columns.begin)))),
        virtual_blocks_(virtual_blocks),
        short_(is_short(columns.end - columns.begin)),
        splits_lines_(splits_lines()) {}

  // Fills `group` with the rows of flat positions from `begin` on, up to `end` or the size of a group.
  void read(RowGroup& group, std::int64_t begin, std::int64_t end) const {
    group.count = end - begin < group_size_ ? end - begin : group_size_;
    for (std::int64_t i = 0; i < group.count; ++i) {
      group.position[i] = begin + i;
      group.row[i] = addresses_[begin + i];
    }
    if (!virtual_blocks_) return;
    for (std::int64_t i = 0; i < group.count; ++i) {
      const std::int64_t address = group.row[i];
      const bool first = address < table_.rows;  // the common case needs no division
      group.block[i] = first ? 0 : address / table_.rows;
      group.row[i] = first ? address : address % table_.rows;
    }
  }

  // Asks for `count` columns from `column` on of the group's row `i`, if it has one; for its scale with the first ones.
  void request(const RowGroup& group, std::int64_t i, std::int64_t column, std::int64_t count) const {
    if (const void* from = to_request(group, i, column)) prefetch(from, Stored<V>::bytes(count));
  }

  // The same for as many columns as are known when this is compiled. Short rows are asked for without a loop. Of longer
  // ones a loop that is predicted to run on asks for lines of the next columns early, which is faster.
  template <std::int64_t kCount>
  void request(const RowGroup& group, std::int64_t i, std::int64_t column) const {
    if (!short_) return request(group, i, column, kCount);
    const auto* from = static_cast<const char*>(to_request(group, i, column));
    if (from == nullptr) return;
    for (std::int64_t at = 0; at < Stored<V>::bytes(kCount); at += kLine) __builtin_prefetch(from + at);
    if (splits_lines_) __builtin_prefetch(from + Stored<V>::bytes(kCount) - 1);
    asm volatile("");  // see prefetch
  }

  Cursor cursor(std::int64_t row, std::int64_t column) const {
    return Stored<V>::at(table_.data, row * table_.row_stride + column);
  }

  // What a code of the row is multiplied by.
  float scale(std::int64_t row) const { return table_.scales == nullptr ? 1.0f : table_.scales[row]; }

 private:
  static constexpr std::int64_t kLine = 64;

  // Of 8 lines, or summed in two tiles of columns.
  static bool is_short(std::int64_t columns) {
    return Stored<V>::bytes(columns) <= 8 * kLine || columns <= 2 * (2 * Simd::kMostPairs * Simd::kWidth);
  }

  const void* to_request(const RowGroup& group, std::int64_t i, std::int64_t column) const {
    if (i >= group.count) return nullptr;
    if (table_.scales != nullptr && column == columns_.begin) __builtin_prefetch(table_.scales + group.row[i]);
    return Stored<V>::bytes_at(cursor(group.row[i], column));
  }

  bool splits_lines() const {
    const auto first = reinterpret_cast<std::uintptr_t>(table_.data);
    return (first | static_cast<std::uintptr_t>(Stored<V>::bytes(table_.row_stride))) % kLine != 0;
  }

  // This group and the next one share the first-level cache; many rows under way hide memory latency.
  static std::int64_t most_rows(std::int64_t row_bytes) {
    constexpr std::int64_t kBytes = 16384;
    constexpr std::int64_t kFewest = 4;
    if (row_bytes * RowGroup::kMost <= kBytes) return RowGroup::kMost;
    return row_bytes * kFewest >= kBytes ? kFewest : kBytes / row_bytes;
  }

  // A group of one row after full ones would leave no time for the next group's rows to come.
  static std::int64_t even_part(std::int64_t size, std::int64_t most) {
    const std::int64_t parts = (size + most - 1) / most;
    return parts <= 1 ? most : (size + parts - 1) / parts;
  }

  UltramemTable table_;
  const std::int64_t* addresses_;
  UltramemRange columns_;
  std::int64_t group_size_;
  bool virtual_blocks_, short_, splits_lines_;
};

}  // namespace
}  // namespace ultramem
