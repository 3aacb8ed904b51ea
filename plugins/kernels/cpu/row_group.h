// What SparseLookup and SparseGate share: checking addresses, and reading rows so that later ones are on their way
// while earlier ones are summed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

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

// How numbers of V are pointed at, at which byte of a row they are, and how many bytes so many take.
template <typename V>
struct Stored {
  using Cursor = const V*;
  static Cursor at(const char* row, std::int64_t column) { return reinterpret_cast<const V*>(row) + column; }
  static constexpr std::int64_t offset(std::int64_t column) { return column * static_cast<std::int64_t>(sizeof(V)); }
  static constexpr std::int64_t bytes(std::int64_t count) { return offset(count); }
};

template <>
struct Stored<Int4> {
  using Cursor = Int4Cursor;
  static Cursor at(const char* row, std::int64_t column) {
    return {reinterpret_cast<const std::uint8_t*>(row), column};
  }
  static constexpr std::int64_t offset(std::int64_t column) { return column / 2; }
  static constexpr std::int64_t bytes(std::int64_t count) { return (count + 1) / 2; }
};

// Rows at consecutive flat positions of the addresses. Behind the last one's stands where the next ones begin, so that
// a loop over rows asks for the one some places on without a question.
struct RowGroup {
  static constexpr std::int64_t kMost = 128;
  static constexpr std::int64_t kMostAhead = 64;

  std::int64_t count = 0;
  std::int64_t position[kMost];
  const char* data[kMost + kMostAhead];
  const float* scale[kMost] = {};  // of codes
  std::int64_t block[kMost];       // filled where there are virtual blocks
};

// How many rows on one is asked for, so that about kBytesAhead are under way.
inline std::int64_t rows_ahead(std::int64_t row_bytes, std::int64_t most) {
  constexpr std::int64_t kBytesAhead = 8192, kFewest = 8;
  const std::int64_t rows = row_bytes > 0 ? kBytesAhead / row_bytes : kFewest;
  return std::min(std::clamp(rows, kFewest, RowGroup::kMostAhead), most);
}

// Whether rows have scales: all codes, and nothing else.
template <typename V>
constexpr bool kCoded = std::is_same_v<V, Int8> || std::is_same_v<V, Int4> || std::is_same_v<V, Float8>;

// Puts rows of one block together, in the order that they have; blocks a multiple of kBlocks apart stay mixed.
inline void order_by_block(RowGroup& group, std::int64_t blocks) {
  constexpr std::int64_t kBlocks = 256;
  std::int64_t place[kBlocks + 1] = {};
  for (std::int64_t i = 0; i < group.count; ++i) ++place[group.block[i] % kBlocks + 1];
  for (std::int64_t b = 0; b < std::min(kBlocks, blocks); ++b) place[b + 1] += place[b];
  RowGroup ordered;
  ordered.count = group.count;
  for (std::int64_t i = 0; i < group.count; ++i) {
    const std::int64_t to = place[group.block[i] % kBlocks]++;
    ordered.position[to] = group.position[i];
    ordered.data[to] = group.data[i];
    ordered.scale[to] = group.scale[i];
    ordered.block[to] = group.block[i];
  }
  group = ordered;
}

// The rows that checked addresses name.
template <typename V>
class TableRows {
 public:
  TableRows(const UltramemTable& table, const std::int64_t* addresses, bool virtual_blocks)
      : table_(table),
        addresses_(addresses),
        row_bytes_(Stored<V>::offset(table.row_stride)),
        virtual_blocks_(virtual_blocks) {}

  // Fills `group` with the rows of the flat positions [begin, end), RowGroup::kMost at most.
  void read(RowGroup& group, std::int64_t begin, std::int64_t end) const {
    group.count = end - begin;
    const std::int64_t* addresses = addresses_ + begin;
    for (std::int64_t i = 0; i < group.count; ++i) group.position[i] = begin + i;
    if (virtual_blocks_) {
      read_blocks(group, addresses);
    } else {
      for (std::int64_t i = 0; i < group.count; ++i) place(group, i, addresses[i]);
    }
  }

  // What the codes of row `i` are multiplied by.
  static float scale(const RowGroup& group, std::int64_t i) {
    if constexpr (kCoded<V>) return *group.scale[i];
    return 1.0f;
  }

  // Whether bytes that begin at a multiple of kLine of a row may lie on one line more than they fill.
  bool splits_lines() const {
    return (reinterpret_cast<std::uintptr_t>(table_.data) | static_cast<std::uintptr_t>(row_bytes_)) % kLine != 0;
  }

  std::int64_t row_bytes() const { return row_bytes_; }

 private:
  void place(RowGroup& group, std::int64_t i, std::int64_t row) const {
    group.data[i] = static_cast<const char*>(table_.data) + row * row_bytes_;
    if constexpr (kCoded<V>) group.scale[i] = table_.scales + row;
  }

  void read_blocks(RowGroup& group, const std::int64_t* addresses) const {
    for (std::int64_t i = 0; i < group.count; ++i) {
      const bool first = addresses[i] < table_.rows;  // the common case needs no division
      group.block[i] = first ? 0 : addresses[i] / table_.rows;
      place(group, i, first ? addresses[i] : addresses[i] % table_.rows);
    }
  }

  UltramemTable table_;
  const std::int64_t* addresses_;
  std::int64_t row_bytes_;
  bool virtual_blocks_;
};

}  // namespace
}  // namespace ultramem
