// Numbers of four bits, two a byte, the first in the low half: one is pointed at by an Int4Cursor.
#pragma once

#include <cstdint>

#include "../number.h"

namespace ultramem {

struct Int4 {};

struct Int4Cursor {
  const std::uint8_t* row;
  std::int64_t at;

  Int4Cursor operator+(std::int64_t numbers) const { return {row, at + numbers}; }
  bool splits_byte() const { return (at & 1) != 0; }
  const std::uint8_t* byte() const { return row + (at >> 1); }
};

namespace {

inline float to_float(Int4Cursor value) {
  const int byte = *value.byte();
  return static_cast<float>((value.splits_byte() ? byte >> 4 : byte & 15) - 8);
}

}  // namespace
}  // namespace ultramem
