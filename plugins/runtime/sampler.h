// The next token from logits: repetition penalty, temperature, top-k, top-p; greedy at temperature 0.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "include/ultramem/ultramem.h"

namespace ultramem::runtime {

// One sequence's sampler; the same seed and sequence number give the same tokens on every platform.
class Sampler {
 public:
  // Throws Failure INVALID for options out of range.
  Sampler(const UltramemGenerateOptions& options, std::size_t sequence);

  // A token that the prompt or the output holds: the penalty counts it once.
  void saw(std::int64_t token);
  // The next token, from logits [vocab_size].
  std::int64_t next(const float* logits, std::int64_t vocab_size);

 private:
  void penalise(std::vector<float>& logits) const;
  std::int64_t draw(const std::vector<float>& logits);

  float temperature_, top_p_, penalty_;
  std::int64_t top_k_;
  std::vector<std::int64_t> seen_;  // sorted
  std::mt19937_64 random_;
};

}  // namespace ultramem::runtime
