#include "session.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

#include "failure.h"

namespace ultramem::runtime {
namespace {

constexpr std::int64_t kMostLogits = 16 << 20;  // floats of one prefill run: the graph gives those of every position

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::string named(std::size_t sequence) { return "sequence " + std::to_string(sequence); }

}  // namespace

Session::Session(const Model& model, const UltramemSessionOptions& options)
    : model_(model),
      max_tokens_(options.max_tokens == 0 ? model.manifest().positions : options.max_tokens),
      memory_limit_(options.memory_limit_bytes),
      run_options_(make_run_options(model.ort())) {
  const std::int64_t most = model.manifest().positions;
  require(max_tokens_ > 0 && max_tokens_ <= most, ULTRAMEM_CODE_INVALID,
          "max_tokens: expected 0 to " + std::to_string(most) + ", the model's positions, found " +
              std::to_string(options.max_tokens));
  require(memory_limit_ >= 0, ULTRAMEM_CODE_INVALID, "memory_limit_bytes: expected 0 or more");
}

void Session::reset() {
  lengths_.clear();
  logits_.clear();
  if (cache_ != nullptr && !cache_->shares_runs()) cache_.reset();  // it holds the tokens; a packed one is overwritten
}

void Session::start(std::size_t sequences) {
  require(sequences > 0, ULTRAMEM_CODE_INVALID, "tokens: expected at least one sequence, found none");
  if (lengths_.empty()) {
    if (cache_ == nullptr || cached_sequences_ != sequences) {
      cache_ = make_cache(model_, sequences, memory_limit_);
      cached_sequences_ = sequences;
    }
    lengths_.assign(sequences, 0);
    logits_.assign(sequences * static_cast<std::size_t>(model_.manifest().vocab_size), 0);
  }
  require(sequences == lengths_.size(), ULTRAMEM_CODE_INVALID,
          "tokens: this session holds " + std::to_string(lengths_.size()) + " sequences, found " +
              std::to_string(sequences) + ": reset it first");
}

void Session::check_tokens(const Tokens& tokens, std::size_t sequence) const {
  require(tokens.count > 0, ULTRAMEM_CODE_INVALID, named(sequence) + ": expected at least one token, found none");
  const std::int64_t vocab_size = model_.manifest().vocab_size;
  for (std::size_t i = 0; i < tokens.count; ++i) {
    // A Gather would count a negative id from the end.
    require(tokens.data[i] >= 0 && tokens.data[i] < vocab_size, ULTRAMEM_CODE_INVALID,
            named(sequence) + ": token " + std::to_string(tokens.data[i]) + " at position " + std::to_string(i) +
                " is outside the vocabulary [0, " + std::to_string(vocab_size) + ")");
  }
}

void Session::check_room(std::int64_t total, std::size_t sequence) const {
  require(total <= max_tokens_, ULTRAMEM_CODE_FULL,
          named(sequence) + ": " + std::to_string(total) + " tokens, the session holds " + std::to_string(max_tokens_) +
              ": raise max_tokens (the model has " + std::to_string(model_.manifest().positions) +
              " positions), or reset the session");
}

void Session::prefill(const std::vector<Tokens>& tokens) {
  const Clock clock;
  // Everything is checked before anything is run: a failure leaves every sequence as it was.
  require(lengths_.empty() || tokens.size() == lengths_.size(), ULTRAMEM_CODE_INVALID,
          "tokens: this session holds " + std::to_string(lengths_.size()) + " sequences, found " +
              std::to_string(tokens.size()) + ": reset it first");
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    check_tokens(tokens[i], i);
    check_room((lengths_.empty() ? 0 : lengths_[i]) + static_cast<std::int64_t>(tokens[i].count), i);
  }
  start(tokens.size());
  std::int64_t longest = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    longest = std::max(longest, lengths_[i] + static_cast<std::int64_t>(tokens[i].count));
  }
  cache_->reserve(longest);
  for (std::size_t i = 0; i < tokens.size(); ++i) append(i, tokens[i]);
  for (const Tokens& part : tokens) metrics_.prompt_tokens += static_cast<std::int64_t>(part.count);
  metrics_.prefill_seconds += clock.seconds();
}

// One sequence at a time: GroupQueryAttention appends several tokens to a cache only so, and no padding is computed.
void Session::append(std::size_t sequence, Tokens tokens) {
  const Manifest& manifest = model_.manifest();
  const std::int64_t chunk =
      std::max<std::int64_t>(1, std::min(manifest.prefill_chunk, kMostLogits / manifest.vocab_size));
  for (std::size_t at = 0; at < tokens.count; at += static_cast<std::size_t>(chunk)) {
    run({sequence, 1}, tokens.data + at, std::min(tokens.count - at, static_cast<std::size_t>(chunk)));
  }
}

void Session::decode(const std::int64_t* tokens) {
  require(!lengths_.empty(), ULTRAMEM_CODE_INVALID, "decode: the session holds no sequences: prefill them first");
  step({0, sequences()}, tokens);
}

void Session::step(Rows rows, const std::int64_t* tokens) {
  const Clock clock;
  std::int64_t longest = 0;
  for (std::size_t i = 0; i < rows.count; ++i) {
    const std::size_t sequence = rows.first + i;
    check_tokens({tokens + i, 1}, sequence);
    check_room(lengths_[sequence] + 1, sequence);
    longest = std::max(longest, lengths_[sequence] + 1);
  }
  cache_->reserve(longest);
  const std::size_t together = cache_->shares_runs() ? rows.count : 1;
  for (std::size_t i = 0; i < rows.count; i += together) run({rows.first + i, together}, tokens + i, 1);
  metrics_.decode_seconds += clock.seconds();
  metrics_.decoded_tokens += static_cast<std::int64_t>(rows.count);
}

// The tokens of a sequence stand at the start of its row: a row's sum is its length, which is all that
// GroupQueryAttention reads of it.
std::vector<std::int64_t> Session::mask(Rows rows, std::int64_t total, std::size_t count) const {
  std::vector<std::int64_t> mask(rows.count * static_cast<std::size_t>(total), 0);
  for (std::size_t i = 0; i < rows.count; ++i) {
    const auto held = lengths_[rows.first + i] + static_cast<std::int64_t>(count);
    std::fill_n(mask.begin() + static_cast<std::ptrdiff_t>(i) * total, held, 1);
  }
  return mask;
}

void Session::run(Rows rows, const std::int64_t* tokens, std::size_t count) {
  end_if_cancelled();
  const Ort& ort = model_.ort();
  const auto vocab_size = static_cast<std::size_t>(model_.manifest().vocab_size);
  const auto batch = static_cast<std::int64_t>(rows.count), length = static_cast<std::int64_t>(count);
  const std::int64_t held = *std::max_element(lengths_.begin() + static_cast<std::ptrdiff_t>(rows.first),
                                              lengths_.begin() + static_cast<std::ptrdiff_t>(rows.first + rows.count));
  std::vector<std::int64_t> attention = mask(rows, held + length, count);
  run_logits_.resize(rows.count * count * vocab_size);
  const Value ids = tensor_over(ort, const_cast<std::int64_t*>(tokens), {batch, length});
  const Value masked = tensor_over(ort, attention.data(), {batch, held + length});
  const Value logits = tensor_over(ort, run_logits_.data(), {batch, length, model_.manifest().vocab_size});

  std::vector<const OrtValue*> inputs = cache_->past(rows);
  inputs.insert(inputs.begin(), {ids.get(), masked.get()});
  std::vector<OrtValue*> outputs = cache_->present(rows);
  outputs.insert(outputs.begin(), logits.get());
  OrtStatus* status =
      ort::Run::of(ort.api())(model_.graph(), run_options_.get(), model_.input_names().data(), inputs.data(),
                              inputs.size(), model_.output_names().data(), outputs.size(), outputs.data());
  if (status != nullptr && is_cancelled()) {
    ort::ReleaseStatus::of(ort.api())(status);
    end_if_cancelled();
  }
  ort.check(status, "a run of " + std::to_string(rows.count) + " x " + std::to_string(count) + " tokens");
  cache_->keep(rows, {outputs.begin() + 1, outputs.end()});
  for (std::size_t i = 0; i < rows.count; ++i) {
    lengths_[rows.first + i] += length;
    const float* last = run_logits_.data() + (i * count + count - 1) * vocab_size;
    std::memcpy(logits_.data() + (rows.first + i) * vocab_size, last, vocab_size * sizeof(float));
  }
}

// The flag and ONNX Runtime's own change together: a run that ONNX Runtime ended finds the flag set.
void Session::cancel() {
  const std::lock_guard<std::mutex> lock(cancelling_);
  cancelled_ = true;
  const Ort& ort = model_.ort();
  if (OrtStatus* status = ort::RunOptionsSetTerminate::of(ort.api())(run_options_.get())) {
    ort::ReleaseStatus::of(ort.api())(status);  // the flag ends the call before its next run
  }
}

bool Session::is_cancelled() {
  const std::lock_guard<std::mutex> lock(cancelling_);
  return cancelled_;
}

void Session::end_if_cancelled() {
  const std::lock_guard<std::mutex> lock(cancelling_);
  if (!cancelled_) return;
  const Ort& ort = model_.ort();
  ort.check(ort::RunOptionsUnsetTerminate::of(ort.api())(run_options_.get()), "cancel");
  cancelled_ = false;
  fail(ULTRAMEM_CODE_CANCELLED, "cancelled by ultramem_session_cancel");
}

const float* Session::logits(std::size_t sequence) const {
  require(sequence < lengths_.size(), ULTRAMEM_CODE_INVALID,
          "logits: the session holds " + std::to_string(lengths_.size()) + " sequences, found " + named(sequence));
  return logits_.data() + sequence * static_cast<std::size_t>(model_.manifest().vocab_size);
}

const Output& Session::output(std::size_t sequence) const {
  require(
      sequence < outputs_.size(), ULTRAMEM_CODE_INVALID,
      "output: the last generation had " + std::to_string(outputs_.size()) + " sequences, found " + named(sequence));
  return outputs_[sequence];
}

UltramemMetrics Session::metrics() const {
  UltramemMetrics found = metrics_;
  const double seconds = found.decode_seconds;
  found.table_bytes_read = found.decoded_tokens * model_.table_bytes_per_token();
  found.tokens_per_second = seconds > 0 ? static_cast<double>(found.decoded_tokens) / seconds : 0;
  found.table_gb_per_second = seconds > 0 ? static_cast<double>(found.table_bytes_read) / seconds / 1e9 : 0;
  found.cache_bytes = cache_ == nullptr ? 0 : cache_->bytes();
  return found;
}

}  // namespace ultramem::runtime
