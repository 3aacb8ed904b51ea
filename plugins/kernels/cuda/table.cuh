// Rows of a table in global memory, and the choice of kernel by the table's type.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "row.h"

namespace ultramem::cuda {

// One row, read sixteen bytes or one number at a time.
template <typename Row, bool kWide>
struct RowReader {
  static constexpr int kNumbers = kWide ? Row::kNumbers : 1;  // of one `load`

  struct Loaded {
    Bytes16 bytes;
  };

  // The numbers from `column` on. Rows are not met again soon, so they pass the first-level cache by.
  ULTRAMEM_BLOCK static void load(const char* row, std::int64_t column, Loaded& loaded) {
    if constexpr (kWide) {
      const auto* at = reinterpret_cast<const uint4*>(row + column * Row::kBits / 8);
      const uint4 words = __ldcs(at);
      loaded.bytes = {{words.x, words.y, words.z, words.w}};
    } else {
      loaded.bytes.words[0] = to_bits(Row::at(row, column));
    }
  }
  ULTRAMEM_BLOCK static void decode(const Loaded& loaded, float (&numbers)[kNumbers]) {
    if constexpr (kWide) {
      Row::decode(loaded.bytes, numbers);
    } else {
      numbers[0] = from_bits(loaded.bytes.words[0]);
    }
  }
};

// What the codes of a row are multiplied with.
ULTRAMEM_BLOCK float scale_of(const UltramemTable& table, std::int64_t row) {
  return table.scales == nullptr ? 1.0f : __ldg(table.scales + row);
}

// Where a row begins.
template <typename Row>
ULTRAMEM_BLOCK const char* row_of(const UltramemTable& table, std::int64_t row) {
  return static_cast<const char*>(table.data) + row * table.row_stride * Row::kBits / 8;
}

// Whether every row begins, and every run of `width` numbers ends, on sixteen bytes.
template <typename Row>
bool is_wide(const UltramemTable& table, std::int64_t width) {
  return reinterpret_cast<std::uintptr_t>(table.data) % 16 == 0 && table.row_stride % Row::kNumbers == 0 &&
         width % Row::kNumbers == 0;
}

// Calls launch(row) with the Row of the table's type; false where there is none.
template <typename Launch>
bool with_row(UltramemType type, const Launch& launch) {
  switch (type) {
    case ULTRAMEM_FLOAT32:
      launch(PlainRow<float>());
      return true;
    case ULTRAMEM_FLOAT16:
      launch(PlainRow<Half>());
      return true;
    case ULTRAMEM_BFLOAT16:
      launch(PlainRow<BFloat16>());
      return true;
    case ULTRAMEM_INT8:
      launch(PlainRow<Int8>());
      return true;
    case ULTRAMEM_INT4:
      launch(Int4Row());
      return true;
    case ULTRAMEM_FLOAT8_E4M3:
      launch(PlainRow<Float8>());
      return true;
  }
  return false;
}

}  // namespace ultramem::cuda
