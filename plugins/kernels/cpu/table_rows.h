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

// The columns [column, column + count) of the rows that checked addresses name.
template <typename V>
class TableRows {
 public:
  TableRows(const UltramemTable& table, const std::int64_t* addresses, std::int64_t end, UltramemRange columns)
      : data_(static_cast<const V*>(table.data) + columns.begin),
        rows_(table.rows),
        stride_(table.row_stride),
        bytes_((columns.end - columns.begin) * static_cast<std::int64_t>(sizeof(V))),
        addresses_(addresses),
        end_(end),
        ahead_(rows_ahead(bytes_)) {}

  // Requests the rows of the flat positions that `at(begin)` would otherwise wait for.
  void start(std::int64_t begin) const {
    for (std::int64_t next = begin; next < begin + ahead_ && next < end_; ++next) prefetch(row(next), bytes_);
  }

  // The row of flat position `at`, and a request for the one `ahead_` positions on.
  const V* at(std::int64_t at) const {
    if (at + ahead_ < end_) prefetch(row(at + ahead_), bytes_);
    return row(at);
  }

  std::int64_t block(std::int64_t at) const { return addresses_[at] < rows_ ? 0 : addresses_[at] / rows_; }

 private:
  // Enough rows under way to hide memory latency, few enough to stay in the first-level cache until used.
  static std::int64_t rows_ahead(std::int64_t bytes) {
    constexpr std::int64_t kBytesAhead = 8192;
    constexpr std::int64_t kMostRows = 16;
    if (bytes * kMostRows <= kBytesAhead) return kMostRows;
    return bytes >= kBytesAhead ? 1 : kBytesAhead / bytes;
  }

  const V* row(std::int64_t at) const {
    const std::int64_t address = addresses_[at];
    return data_ + (address < rows_ ? address : address % rows_) * stride_;  // the common case needs no division
  }

  const V* data_;
  std::int64_t rows_;
  std::int64_t stride_;
  std::int64_t bytes_;
  const std::int64_t* addresses_;
  std::int64_t end_;
  std::int64_t ahead_;
};

}  // namespace
}  // namespace ultramem
