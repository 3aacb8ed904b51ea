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
  static constexpr std::int64_t kRowsOfPass = 128;            // stay in the second-level cache
  static constexpr std::int64_t kTogether = Lanes<T>::kCount, kItem = sizeof(T);

  const T* x(std::int64_t row) const { return static_cast<const T*>(p_.x) + row * p_.x_stride; }
  const T* weights(std::int64_t column) const { return static_cast<const T*>(p_.weight) + column * p_.depth; }

  // Blocks of nearly as many rows; each asks for a part of the next columns.
  void pass(UltramemRange rows, UltramemRange columns) const {
    const std::int64_t count = rows.end - rows.begin, blocks = (count + kMostRows - 1) / kMostRows;
    ask(columns.begin, columns.end, 0, 1);
    for (std::int64_t column = columns.begin; column < columns.end; column += kColumns) {
      for (std::int64_t block = 0; block < blocks; ++block) {
        ask(column + kColumns, columns.end, block, blocks);
        const std::int64_t begin = count * block / blocks, end = count * (block + 1) / blocks;
        multiply(end - begin, rows.begin + begin, column, std::min<std::int64_t>(kColumns, columns.end - column));
      }
    }
  }

  // For part `index` of `parts` of the weights of the columns from `column` on.
  void ask(std::int64_t column, std::int64_t end, std::int64_t index, std::int64_t parts) const {
    if (column >= end) return;
    const std::int64_t numbers = std::min<std::int64_t>(kColumns, end - column) * p_.depth;
    const std::int64_t first = numbers * index / parts, last = numbers * (index + 1) / parts;
    prefetch(weights(column) + first, (last - first) * kItem);
  }

  template <int kRows = kMostRows>
  void multiply(std::int64_t rows, std::int64_t row, std::int64_t column, std::int64_t columns) const {
    if constexpr (kRows > 0) {
      if (rows == kRows) return multiply_rows<kRows>(row, column, columns);
      multiply<kRows - 1>(rows, row, column, columns);
    }
  }

  // Where fewer than kColumns are left, the last one stands for those behind it: all sums come about in one way.
  template <int kRows>
  void multiply_rows(std::int64_t row, std::int64_t column, std::int64_t columns) const {
    const T *from = x(row), *weight[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) weight[c] = weights(column + std::min<std::int64_t>(c, columns - 1));
    Vector sums[kRows][kColumns] = {};
    const auto step = [&](std::int64_t i, const auto& load) {
      typename Lanes<T>::Type part[kColumns];
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) part[c] = load(weight[c] + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto numbers = load(from + r * p_.x_stride + i);
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) sums[r][c] = Lanes<T>::add_products(sums[r][c], numbers, part[c]);
      }
    };
    std::int64_t i = 0;
    for (; i + kTogether <= p_.depth; i += kTogether) step(i, [](const T* at) { return Lanes<T>::load(at); });
    if (const std::int64_t left = p_.depth - i; left > 0) {
      step(i, [left](const T* at) { return Lanes<T>::load(at, left); });
    }
    float numbers[(kRows * kColumns + Simd::kWidth - 1) / Simd::kWidth * Simd::kWidth];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) Simd::store_four_sums(sums[r], numbers + r * kColumns);
    add_bias<kRows>(numbers, column, columns);
    store<kRows>(numbers, row, column, columns);
  }

  template <int kRows>
  void add_bias(float* numbers, std::int64_t column, std::int64_t columns) const {
    if (p_.bias == nullptr) return;
    const T* bias = static_cast<const T*>(p_.bias) + column;
    for (int r = 0; r < kRows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) numbers[r * kColumns + c] += to_float(bias[c]);
    }
  }

  // Numbers of rows side by side are rounded together.
  template <int kRows>
  void store(const float* numbers, std::int64_t row, std::int64_t column, std::int64_t columns) const {
    if (p_.output_type == ULTRAMEM_FLOAT32) {
      return copy<kRows>(numbers, static_cast<float*>(p_.output), row, column, columns);
    }
    T rounded[kRows * kColumns + Simd::kWidth];
    for (std::int64_t i = 0; i < kRows * kColumns; i += Simd::kWidth) {
      Simd::store(rounded + i, Simd::load(numbers + i));
    }
    copy<kRows>(rounded, static_cast<T*>(p_.output), row, column, columns);
  }

  template <int kRows, typename U>
  void copy(const U* numbers, U* output, std::int64_t row, std::int64_t column, std::int64_t columns) const {
    for (int r = 0; r < kRows; ++r) {
      U* to = output + (row + r) * p_.columns + column;
      const U* from = numbers + r * kColumns;
      if (columns == kColumns) {
        std::memcpy(to, from, kColumns * sizeof(U));
      } else {
        std::memcpy(to, from, static_cast<std::size_t>(columns) * sizeof(U));
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
