// Few rows an expert by that expert's weights, bfloat16: each weight is read once, in the order in which it lies, and
// meets every row of its expert while it is in the nearest cache. AVX512-BF16, sums in float32.
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

using Bits = std::uint16_t;  // a bfloat16

struct Grouped {
  const Bits* rows;          // [ends[experts - 1], depth], sorted by expert
  const std::int64_t* ends;  // [experts]: one past each expert's last row
  const Bits* weights;       // [experts, columns, depth]
  Bits* output;              // [rows, columns]
  std::int64_t experts;
  std::int64_t columns;  // a multiple of kColumns
  std::int64_t depth;
  std::int64_t parts;  // tasks an expert
};

constexpr std::int64_t kColumns = 4;  // at once: with kRows rows 24 of the 32 registers hold sums
constexpr std::int64_t kRows = 6;
constexpr std::int64_t kLanes = 32;  // numbers in a register

// Rounded to bfloat16, the sums over the lanes of four registers.
static void store_sums(const __m512* sums, Bits* out) {
  const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
  const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
  const __m512 four = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  const __m128 whole = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128bh rounded = _mm_cvtneps_pbh(whole);
  __builtin_memcpy(out, &rounded, kColumns * sizeof(Bits));
}

template <std::int64_t Rows>
static void multiply(const Bits* rows, const Bits* weights, std::int64_t depth, Bits* output, std::int64_t columns) {
  const Bits* next = weights + kColumns * depth;
  __m512 sums[Rows][kColumns] = {};
  for (std::int64_t k = 0; k < depth; k += kLanes) {
    const std::int64_t left = std::min(depth - k, kLanes);
    const auto mask = static_cast<__mmask32>(left == kLanes ? ~0u : (1u << left) - 1);
    __m512bh part[kColumns];
#pragma GCC unroll 8
    for (std::int64_t c = 0; c < kColumns; ++c) {
      const Bits* weight = weights + c * depth + k;
      // The next columns in the order of memory: four streams side by side reach three quarters of its speed.
      _mm_prefetch(reinterpret_cast<const char*>(next + k * kColumns + c * kLanes), _MM_HINT_T0);
      part[c] = (__m512bh)_mm512_maskz_loadu_epi16(mask, weight);
    }
#pragma GCC unroll 8
    for (std::int64_t r = 0; r < Rows; ++r) {
      const auto row = (__m512bh)_mm512_maskz_loadu_epi16(mask, rows + r * depth + k);
#pragma GCC unroll 8
      for (std::int64_t c = 0; c < kColumns; ++c) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], row, part[c]);
    }
  }
#pragma GCC unroll 8
  for (std::int64_t r = 0; r < Rows; ++r) store_sums(sums[r], output + r * columns);
}

constexpr decltype(&multiply<1>) kMultiply[] = {multiply<1>, multiply<2>, multiply<3>,
                                                multiply<4>, multiply<5>, multiply<6>};
static_assert(sizeof(kMultiply) / sizeof(kMultiply[0]) == kRows, "one function a number of rows");

// A part of one expert's columns.
extern "C" __attribute__((visibility("default"))) void grouped_task(void* data, std::size_t index) {
  const Grouped& g = *static_cast<const Grouped*>(data);
  const auto expert = static_cast<std::int64_t>(index) / g.parts, part = static_cast<std::int64_t>(index) % g.parts;
  const std::int64_t first = expert == 0 ? 0 : g.ends[expert - 1], count = g.ends[expert] - first;
  if (count == 0) return;
  const std::int64_t groups = g.columns / kColumns, blocks = (count + kRows - 1) / kRows;
  for (std::int64_t group = groups * part / g.parts; group < groups * (part + 1) / g.parts; ++group) {
    const std::int64_t column = group * kColumns;
    const Bits* weights = g.weights + (expert * g.columns + column) * g.depth;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t row = first + count * b / blocks, rows = first + count * (b + 1) / blocks - row;
      Bits* output = g.output + row * g.columns + column;
      kMultiply[rows - 1](g.rows + row * g.depth, weights, g.depth, output, g.columns);
    }
  }
}
