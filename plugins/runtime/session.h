// Sequences that advance together over one cache, and generation with them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cache.h"
#include "model.h"

namespace ultramem::runtime {

struct Tokens {
  const std::int64_t* data;
  std::size_t count;
};

struct Output {
  Ids ids;
  UltramemFinish finish = ULTRAMEM_FINISH_LENGTH;
};

class Session {
 public:
  Session(const Model& model, const UltramemSessionOptions& options);

  void reset();
  void prefill(const std::vector<Tokens>& tokens);
  void decode(const std::int64_t* tokens);
  const float* logits(std::size_t sequence) const;
  void generate(const std::vector<Tokens>& prompts, const UltramemGenerateOptions& options);
  const Output& output(std::size_t sequence) const;

  void cancel();  // from any thread
  UltramemMetrics metrics() const;

  const Model& model() const { return model_; }

 private:
  friend class Generation;

  void start(std::size_t sequences);
  void check_tokens(const Tokens& tokens, std::size_t sequence) const;
  void check_room(std::int64_t total, std::size_t sequence) const;
  void append(std::size_t sequence, Tokens tokens);
  // Append one token to each of the sequences `rows`, in one run where the cache can.
  void step(Rows rows, const std::int64_t* tokens);
  // One run on sequences that get `count` tokens each; keeps the logits after the last.
  void run(Rows rows, const std::int64_t* tokens, std::size_t count);
  std::vector<std::int64_t> mask(Rows rows, std::int64_t total, std::size_t count) const;
  bool is_cancelled();
  void end_if_cancelled();
  std::size_t sequences() const { return lengths_.size(); }

  const Model& model_;
  std::int64_t max_tokens_, memory_limit_;
  std::unique_ptr<Cache> cache_;
  std::size_t cached_sequences_ = 0;
  RunOptions run_options_;
  std::mutex cancelling_;
  bool cancelled_ = false;
  std::vector<std::int64_t> lengths_;
  std::vector<float> logits_;  // [sequences, vocab_size]
  std::vector<float> run_logits_;
  std::vector<Output> outputs_;
  UltramemMetrics metrics_{};
};

}  // namespace ultramem::runtime
