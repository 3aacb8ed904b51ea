// A dense layer for few rows on one instruction set.
//
//   x [rows, depth], weight [columns, depth] and bias [columns] of bfloat16; output [rows, columns] of bfloat16 or
//   float
//
// Four columns' weights at a time meet the rows while they are in the nearest cache. Meanwhile those of the next four
// are asked for, line by line in the order in which they lie: side by side they would come at three quarters of that
// speed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "span.h"

namespace ultramem {
namespace {

// Numbers of T that are multiplied together: bfloat16 two a lane, the others as floats.
template <typename T>
struct Lanes {
  using Type = Vector;
  static constexpr std::int64_t kCount = Simd::kWidth;
  static Type load(const T* from) { return Simd::load(from); }
  static Type load(const T* from, std::int64_t count) { return load_partial(from, count); }
  static Vector add_products(Vector sums, Type a, Type b) { return Simd::multiply_add(a, b, sums); }
};

template <>
struct Lanes<BFloat16> {
  using Type = Simd::Raw;
  static constexpr std::int64_t kCount = 2 * Simd::kWidth;
  static Type load(const BFloat16* from) { return Simd::load_raw(from); }
  static Type load(const BFloat16* from, std::int64_t count) { return Simd::load_raw(from, count); }
  static Vector add_products(Vector sums, Type a, Type b) { return Simd::add_products(sums, a, b); }
};

template <typename T>
class Linear {
 public:
  explicit Linear(const UltramemLinear& problem) : p_(problem) {}

  void run(UltramemRange columns) const {
    for (std::int64_t row = 0; row < p_.rows; row += kRowsOfPass) {
      pass({row, std::min(row + kRowsOfPass, p_.rows)}, columns);
    }
  }

 private:
  static constexpr int kColumns = 4;
  static constexpr int kMostRows = Simd::kMostPairs * 3 / 4;  // whose sums of kColumns columns registers hold
  // As much of these as products go over at once stays in the second-level and the first-level cache.
  static constexpr std::int64_t kRowsOfPass = 128, kDeepest = 1024;
  static constexpr std::int64_t kTogether = Lanes<T>::kCount, kItem = sizeof(T);

  // Numbers [begin, end) of the weights of some columns, at most kColumns.
  struct Piece {
    std::int64_t column;
    std::int64_t columns;
    std::int64_t begin;
    std::int64_t end;
  };

  const T* x(std::int64_t row) const { return static_cast<const T*>(p_.x) + row * p_.x_stride; }
  const T* weights(std::int64_t column) const { return static_cast<const T*>(p_.weight) + column * p_.depth; }

  // Blocks of nearly as many rows; each asks for a part of the next piece. A single block reads its rows in one go.
  void pass(UltramemRange rows, UltramemRange columns) const {
    const std::int64_t count = rows.end - rows.begin, blocks = (count + kMostRows - 1) / kMostRows;
    const std::int64_t pieces = blocks == 1 ? 1 : std::max<std::int64_t>(1, (p_.depth + kDeepest - 1) / kDeepest);
    const std::int64_t deep = (p_.depth + pieces * kTogether - 1) / (pieces * kTogether) * kTogether;
    float sums[kRowsOfPass * kColumns];
    Piece piece = piece_of(columns.begin, columns.end, 0, deep);
    ask(piece, 0, 1);
    while (piece.columns > 0) {
      const bool last = piece.end == p_.depth;
      const Piece next = last ? piece_of(piece.column + kColumns, columns.end, 0, deep)
                              : piece_of(piece.column, columns.end, piece.end, deep);
      for (std::int64_t block = 0; block < blocks; ++block) {
        ask(next, block, blocks);
        const std::int64_t begin = count * block / blocks, end = count * (block + 1) / blocks;
        multiply(end - begin, rows.begin + begin, piece, sums + begin * kColumns);
      }
      if (last) finish(rows, piece, sums);
      piece = next;
    }
  }

  Piece piece_of(std::int64_t column, std::int64_t end, std::int64_t begin, std::int64_t deep) const {
    const std::int64_t columns = std::max<std::int64_t>(0, std::min<std::int64_t>(kColumns, end - column));
    return {column, columns, begin, std::min(begin + deep, p_.depth)};
  }

  // For part `index` of `parts` of a piece; in one run where its columns lie side by side: short runs are a quarter
  // slower.
  void ask(const Piece& piece, std::int64_t index, std::int64_t parts) const {
    if (piece.columns == 0) return;
    const std::int64_t deep = piece.end - piece.begin, numbers = piece.columns * deep;
    if (deep == p_.depth) {
      const std::int64_t first = numbers * index / parts, last = numbers * (index + 1) / parts;
      return prefetch(weights(piece.column) + first, (last - first) * kItem);
    }
    const std::int64_t first = piece.columns * index / parts, last = piece.columns * (index + 1) / parts;
    for (std::int64_t c = first; c < last; ++c) prefetch(weights(piece.column + c) + piece.begin, deep * kItem);
  }

  template <int kRows = kMostRows>
  void multiply(std::int64_t rows, std::int64_t row, const Piece& piece, float* sums) const {
    if constexpr (kRows > 0) {
      if (rows == kRows) return multiply_rows<kRows>(row, piece, sums);
      multiply<kRows - 1>(rows, row, piece, sums);
    }
  }

  // Where fewer than kColumns are left, the last one stands for those behind it: all sums come about in one way.
  template <int kRows>
  void multiply_rows(std::int64_t row, const Piece& piece, float* sums) const {
    const T *from = x(row) + piece.begin, *weight[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      weight[c] = weights(piece.column + std::min<std::int64_t>(c, piece.columns - 1)) + piece.begin;
    }
    Vector lanes[kRows][kColumns] = {};
    const auto step = [&](std::int64_t i, const auto& load) {
      typename Lanes<T>::Type part[kColumns];
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) part[c] = load(weight[c] + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto numbers = load(from + r * p_.x_stride + i);
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) lanes[r][c] = Lanes<T>::add_products(lanes[r][c], numbers, part[c]);
      }
    };
    const std::int64_t deep = piece.end - piece.begin;
    std::int64_t i = 0;
    for (; i + kTogether <= deep; i += kTogether) step(i, [](const T* at) { return Lanes<T>::load(at); });
    if (const std::int64_t left = deep - i; left > 0) {
      step(i, [left](const T* at) { return Lanes<T>::load(at, left); });
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float four[kColumns];
      Simd::store_four_sums(lanes[r], four);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        float& sum = sums[r * kColumns + c];
        sum = piece.begin == 0 ? four[c] : sum + four[c];
      }
    }
  }

  // Sums [rows, kColumns] become outputs.
  void finish(UltramemRange rows, const Piece& piece, float* sums) const {
    const std::int64_t count = rows.end - rows.begin;
    if (p_.bias != nullptr) add_bias(static_cast<const T*>(p_.bias) + piece.column, count, piece.columns, sums);
    if (p_.output_type == ULTRAMEM_FLOAT32) return copy(sums, static_cast<float*>(p_.output), rows, piece);
    T rounded[kRowsOfPass * kColumns];
    convert(sums, rounded, count * kColumns);
    copy(rounded, static_cast<T*>(p_.output), rows, piece);
  }

  static void add_bias(const T* bias, std::int64_t rows, std::int64_t columns, float* sums) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t c = 0; c < columns; ++c) sums[row * kColumns + c] += to_float(bias[c]);
    }
  }

  template <typename U>
  void copy(const U* from, U* output, UltramemRange rows, const Piece& piece) const {
    U* to = output + rows.begin * p_.columns + piece.column;
    for (std::int64_t row = rows.begin; row < rows.end; ++row, from += kColumns, to += p_.columns) {
      if (piece.columns == kColumns) {
        std::memcpy(to, from, kColumns * sizeof(U));
      } else {
        std::memcpy(to, from, static_cast<std::size_t>(piece.columns) * sizeof(U));
      }
    }
  }

  const UltramemLinear& p_;
};

inline void linear_any(const UltramemLinear& problem, UltramemRange columns) {
  switch (problem.type) {
    case ULTRAMEM_FLOAT32:
      return Linear<float>(problem).run(columns);
    case ULTRAMEM_FLOAT16:
      return Linear<Half>(problem).run(columns);
    default:
      return Linear<BFloat16>(problem).run(columns);
  }
}

}  // namespace
}  // namespace ultramem
