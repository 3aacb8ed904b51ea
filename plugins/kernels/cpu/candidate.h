// A scored position, and how TuckerTopK's scratch is laid out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../number.h"
#include "../ultramem_kernels.h"

namespace ultramem {
namespace {

// Score and position in one integer that sorts as both: greater is better, and of equal scores the smaller position is.
// The score must not be NaN or -0, the position less than 2^32.
struct Candidate {
  std::uint64_t key;

  static Candidate of(float score, std::int64_t position) {
    const std::uint32_t bits = to_bits(score);
    // Positive floats sort as their bits do, negative ones in reverse and below.
    const std::uint32_t rank = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return {static_cast<std::uint64_t>(rank) << 32 | static_cast<std::uint32_t>(~position)};
  }
  float score() const {
    const auto rank = static_cast<std::uint32_t>(key >> 32);
    return from_bits(rank & 0x80000000u ? rank & 0x7fffffffu : ~rank);
  }
  std::int64_t position() const { return static_cast<std::uint32_t>(~key); }
};

// Addresses within one scratch block, in the order in which they lie. With a null base it only measures.
struct TuckerTopKScratch {
  static constexpr std::int64_t kWidestVector = 16;

  // A selector prunes when it holds more than this many times what it keeps. So many vectors are looked at together,
  // and may take it beyond; the last of them is stored whole before its lanes are counted.
  static constexpr std::int64_t kPruneAt = 4, kTogether = 4;
  static std::int64_t capacity(std::int64_t keep) { return kPruneAt * keep + (kTogether + 1) * kWidestVector; }

  // Scores of a block lie in the first-level cache between being computed and being selected.
  static constexpr std::int64_t kBlock = 8192;

  TuckerTopKScratch(const UltramemTuckerTopK& problem, void* base)
      : k_row(problem.k < problem.n_row ? problem.k : problem.n_row),
        k_col(problem.k < problem.n_col ? problem.k : problem.n_col) {
    std::size_t used = 0;
    const auto take = [&](std::int64_t count, std::size_t size) -> void* {
      void* at = base == nullptr ? nullptr : static_cast<char*>(base) + used;
      used += (static_cast<std::size_t>(count) * size + 63) / 64 * 64;
      return at;
    };
    // No side keeps more than k, so the selectors of both stages take turns with these two.
    offered = static_cast<float*>(take(capacity(problem.k), sizeof(float)));
    positions = static_cast<std::uint32_t*>(take(capacity(problem.k), sizeof(std::uint32_t)));
    block = static_cast<float*>(take(kBlock + kWidestVector, sizeof(float)));
    maxima = static_cast<float*>(take(capacity(problem.k), sizeof(float)));
    rows = static_cast<Candidate*>(take(k_row, sizeof(Candidate)));
    cols = static_cast<Candidate*>(take(k_col, sizeof(Candidate)));
    pairs = static_cast<Candidate*>(take(problem.k, sizeof(Candidate)));
    row = static_cast<float*>(take(problem.rank * k_row, sizeof(float)));
    col = static_cast<float*>(take(problem.rank * k_col, sizeof(float)));
    cores = static_cast<float*>(take((problem.cores + 1) * problem.rank * problem.rank, sizeof(float)));
    left = static_cast<float*>(take(problem.rank, sizeof(float)));
    bytes = used;
  }

  std::int64_t k_row;  // rows kept by stage 1
  std::int64_t k_col;
  float* offered;
  std::uint32_t* positions;
  float* block;
  float* maxima;  // of groups of a block
  Candidate* rows;
  Candidate* cols;
  Candidate* pairs;  // position i * k_col + j on the kept grid
  float* row;        // [rank, k_row]: the kept rows' own scores
  float* col;        // [rank, k_col]
  float* cores;      // [cores + 1, rank, rank]: this head's cores, then their sum
  float* left;       // [rank]: one kept row times the summed core
  std::size_t bytes;
};

}  // namespace
}  // namespace ultramem
