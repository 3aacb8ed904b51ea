#include "sequence.h"

#include <algorithm>
#include <string>

namespace ultramem::engine {
namespace {

constexpr std::size_t kIdBytes = sizeof(std::int64_t);

std::size_t as_size(std::int64_t count) { return static_cast<std::size_t>(count); }

}  // namespace

Sequence::Sequence(const Model& model) : model_(model), info_(model.info()) {
  const std::int64_t vocab_size = model.manifest().vocab_size;
  ids_ = make_buffer(as_size(info_.longest) * kIdBytes, "token ids");
  run_logits_ = make_buffer(as_size(info_.longest * vocab_size) * sizeof(float), "logits");
  logits_.resize(as_size(vocab_size));
  for (const runtime::CachePort& port : info_.caches) {
    const std::size_t bytes = as_size(info_.context * port.heads * port.width * info_.cache_item_bytes);
    caches_.push_back({make_buffer(bytes, "key-value cache"), make_buffer(bytes, "key-value cache")});
  }
  const std::vector<std::int64_t> ones(as_size(info_.context), 1);
  mask_ = make_buffer(ones.size() * kIdBytes, "attention mask");
  check(cudaMemcpy(mask_.get(), ones.data(), ones.size() * kIdBytes, cudaMemcpyHostToDevice), "attention mask");
}

void Sequence::check_tokens(const std::vector<std::int64_t>& tokens) const {
  runtime::require(!tokens.empty(), ULTRAMEM_CODE_INVALID, "tokens: expected at least one, found none");
  const std::int64_t vocab_size = model_.manifest().vocab_size;
  for (const std::int64_t token : tokens) {
    runtime::require(
        token >= 0 && token < vocab_size, ULTRAMEM_CODE_INVALID,
        "token " + std::to_string(token) + " is outside the vocabulary [0, " + std::to_string(vocab_size) + ")");
  }
  const std::int64_t total = length_ + static_cast<std::int64_t>(tokens.size());
  runtime::require(total <= info_.context, ULTRAMEM_CODE_FULL,
                   std::to_string(total) + " tokens, the engine was built for " + std::to_string(info_.context) +
                       ": build it again with larger --shapes");
}

void Sequence::feed(const std::vector<std::int64_t>& tokens) {
  check_tokens(tokens);
  const auto count = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t at = 0; at < count;) {
    // What is too short for the prefill profile goes one by one.
    const std::int64_t left = count - at, piece = left >= info_.shortest ? std::min(left, info_.longest) : 1;
    run(tokens.data() + at, piece);
    at += piece;
  }
}

void Sequence::run(const std::int64_t* tokens, std::int64_t count) {
  Engine& engine = model_.engine();
  const Profile profile = count == 1 ? kDecode : kPrefill;
  check(cudaMemcpyAsync(ids_.get(), tokens, as_size(count) * kIdBytes, cudaMemcpyHostToDevice, stream_.get()), "ids");
  engine.set_shape(profile, "input_ids", {1, count});
  engine.set_shape(profile, "attention_mask", {1, length_ + count});
  engine.bind(profile, "input_ids", ids_.get());
  engine.bind(profile, "attention_mask", mask_.get());
  engine.bind(profile, "logits", run_logits_.get());
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    const runtime::CachePort& port = info_.caches[i];
    engine.set_shape(profile, port.input, {1, port.heads, length_, port.width});
    engine.bind(profile, port.input, caches_[i].past.get());
    engine.bind(profile, port.output, caches_[i].present.get());
  }
  engine.run(profile, stream_.get());
  const float* last = static_cast<const float*>(run_logits_.get()) + as_size(count - 1) * logits_.size();
  check(cudaMemcpyAsync(logits_.data(), last, logits_.size() * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()),
        "logits");
  check(cudaStreamSynchronize(stream_.get()), "a run of " + std::to_string(count) + " tokens");
  for (Cache& cache : caches_) std::swap(cache.past, cache.present);
  length_ += count;
}

}  // namespace ultramem::engine
