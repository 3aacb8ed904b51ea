// One sequence over an engine: its key-value cache on the GPU, and the logits after its last token.
#pragma once

#include <cstdint>
#include <vector>

#include "device.h"
#include "model.h"

namespace ultramem::engine {

class Sequence {
 public:
  // Throws Failure RUNTIME where the GPU has no memory for the cache.
  explicit Sequence(const Model& model);

  // Append tokens: a prompt in pieces as long as the engine takes, or one. Throws Failure INVALID for a token outside
  // the vocabulary, FULL for more than the engine was built for; the sequence is as it was then.
  void feed(const std::vector<std::int64_t>& tokens);

  // [vocab_size] after the last token.
  const float* logits() const { return logits_.data(); }
  std::int64_t length() const { return length_; }

 private:
  // Key or value of one layer, as it was before a run and as it is after: the two change places.
  struct Cache {
    Buffer past, present;
  };

  void check_tokens(const std::vector<std::int64_t>& tokens) const;
  void run(const std::int64_t* tokens, std::int64_t count);

  const Model& model_;
  const runtime::EngineInfo& info_;
  Stream stream_;
  Buffer ids_, mask_, run_logits_;
  std::vector<Cache> caches_;
  std::vector<float> logits_;
  std::int64_t length_ = 0;
};

}  // namespace ultramem::engine
