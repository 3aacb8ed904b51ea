// What SparseLookup and SparseGate share: checking a run of addresses, and walking their rows ahead of the arithmetic.
#pragma once

#include <cstdint>

#include "../ultramem_kernels.h"
#include "span.h"

namespace ultramem {
namespace {

// The first of the flat positions [begin, end) of addresses [tokens, slots] that lies outside [0, limit), or OK.
inline UltramemStatus check_addresses(const std::int64_t* addresses, std::int64_t begin, std::int64_t end,
                                      std::int64_t slots, std::int64_t limit) {
  for (std::int64_t at = begin; at < end; ++at) {
    if (addresses[at] < 0 || addresses[at] >= limit) {
      return {ULTRAMEM_BAD_ADDRESS, at / slots, at % slots, addresses[at]};
    }
  }
  return {ULTRAMEM_OK, 0, 0, 0};
}

// How rows of V are pointed at, and how many bytes so many numbers take.
template <typename V>
struct Stored {
  using Cursor = const V*;
  static Cursor at(const void* data, std::int64_t element) { return static_cast<const V*>(data) + element; }
  static const void* bytes_at(Cursor from) { return from; }
  static std::int64_t bytes(std::int64_t count) { return count * static_cast<std::int64_t>(sizeof(V)); }
};

template <>
struct Stored<Int4> {
  using Cursor = Int4Cursor;
  static Cursor at(const void* data, std::int64_t element) {
    return {static_cast<const std::uint8_t*>(data) + element / 2, element % 2};
  }
  static const void* bytes_at(Cursor from) { return from.byte(); }
  static std::int64_t bytes(std::int64_t count) { return (count + 1) / 2; }
};

// The columns [columns.begin, columns.end) of the rows that checked addresses name.
template <typename V>
class TableRows {
 public:
  using Cursor = typename Stored<V>::Cursor;

  TableRows(const UltramemTable& table, const std::int64_t* addresses, std::int64_t end, UltramemRange columns)
      : table_(table),
        column_(columns.begin),
        bytes_(Stored<V>::bytes(columns.end - columns.begin)),
        addresses_(addresses),
        end_(end),
        ahead_(rows_ahead(bytes_)) {}

  // Requests the rows of the flat positions that `at(begin)` would otherwise wait for.
  void start(std::int64_t begin) const {
    for (std::int64_t next = begin; next < begin + ahead_ && next < end_; ++next) request(next);
  }

  // The row of flat position `at`, and a request for the one `ahead_` positions on.
  Cursor at(std::int64_t at) const {
    if (at + ahead_ < end_) request(at + ahead_);
    return cursor(row(at));
  }

  // What a code of the row is multiplied by.
  float scale(std::int64_t at) const { return table_.scales == nullptr ? 1.0f : table_.scales[row(at)]; }

  std::int64_t block(std::int64_t at) const { return addresses_[at] < table_.rows ? 0 : addresses_[at] / table_.rows; }

 private:
  // Enough rows under way to hide memory latency, few enough to stay in the first-level cache until used.
  static std::int64_t rows_ahead(std::int64_t bytes) {
    constexpr std::int64_t kBytesAhead = 8192;
    constexpr std::int64_t kMostRows = 16;
    if (bytes * kMostRows <= kBytesAhead) return kMostRows;
    return bytes >= kBytesAhead ? 1 : kBytesAhead / bytes;
  }

  void request(std::int64_t at) const {
    prefetch(Stored<V>::bytes_at(cursor(row(at))), bytes_);
    if (table_.scales != nullptr) __builtin_prefetch(table_.scales + row(at));
  }

  std::int64_t row(std::int64_t at) const {
    const std::int64_t address = addresses_[at];
    return address < table_.rows ? address : address % table_.rows;  // the common case needs no division
  }

  Cursor cursor(std::int64_t row) const { return Stored<V>::at(table_.data, row * table_.row_stride + column_); }

  UltramemTable table_;
  std::int64_t column_;
  std::int64_t bytes_;
  const std::int64_t* addresses_;
  std::int64_t end_;
  std::int64_t ahead_;
};

}  // namespace
}  // namespace ultramem
