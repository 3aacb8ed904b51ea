// Session::generate: prefill, then steps over the sequences that have not ended.
#include <algorithm>
#include <chrono>

#include "failure.h"
#include "sampler.h"
#include "session.h"

namespace ultramem::runtime {

class Generation {
 public:
  Generation(Session& session, const std::vector<Tokens>& prompts, const UltramemGenerateOptions& options)
      : session_(session), options_(options) {
    require(options.max_new_tokens > 0, ULTRAMEM_CODE_INVALID,
            "max_new_tokens: expected 1 or more, found " + std::to_string(options.max_new_tokens));
    require(options.time_limit_seconds >= 0, ULTRAMEM_CODE_INVALID, "time_limit_seconds: expected 0 or more");
    session_.outputs_.assign(prompts.size(), {});
    stop_.assign(options.stop_tokens, options.stop_tokens + options.stop_count);
    const auto& ends = session.model().manifest().end_tokens;
    if (options.ignore_end == 0) stop_.insert(stop_.end(), ends.begin(), ends.end());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      samplers_.emplace_back(options, i);
      for (std::size_t at = 0; options.repetition_penalty != 1 && at < prompts[i].count; ++at) {
        samplers_[i].saw(prompts[i].data[at]);
      }
      active_.push_back(i);
    }
  }

  void run(const std::vector<Tokens>& prompts) {
    session_.prefill(prompts);
    while (true) {
      choose();
      if (session_.metrics_.first_token_seconds == 0) session_.metrics_.first_token_seconds = elapsed();
      if (active_.empty()) return;
      if (options_.time_limit_seconds > 0 && elapsed() >= options_.time_limit_seconds) return end_all();
      advance();
    }
  }

 private:
  double elapsed() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  // A new token for every active sequence; those that end leave.
  void choose() {
    tokens_.clear();
    std::vector<std::size_t> still;
    for (const std::size_t sequence : active_) {
      const std::int64_t vocab_size = session_.model().manifest().vocab_size;
      const std::int64_t token = samplers_[sequence].next(session_.logits(sequence), vocab_size);
      if (!take(sequence, token)) continue;
      still.push_back(sequence);
      tokens_.push_back(token);
    }
    active_ = still;
  }

  // Whether the sequence goes on after `token`.
  bool take(std::size_t sequence, std::int64_t token) {
    Output& output = session_.outputs_[sequence];
    if (std::find(stop_.begin(), stop_.end(), token) != stop_.end()) {
      output.finish = ULTRAMEM_FINISH_STOP;
      return false;
    }
    samplers_[sequence].saw(token);
    output.ids.push_back(token);
    if (options_.on_token != nullptr && options_.on_token(options_.user, sequence, token) != 0) {
      output.finish = ULTRAMEM_FINISH_CALLER;
      return false;
    }
    return static_cast<std::int64_t>(output.ids.size()) < options_.max_new_tokens;
  }

  // One step for the active sequences: those that lie side by side share a run.
  void advance() {
    for (std::size_t at = 0; at < active_.size();) {
      std::size_t end = at + 1;
      while (end < active_.size() && active_[end] == active_[end - 1] + 1) ++end;
      session_.step({active_[at], end - at}, tokens_.data() + at);
      at = end;
    }
  }

  void end_all() {
    for (const std::size_t sequence : active_) session_.outputs_[sequence].finish = ULTRAMEM_FINISH_TIME;
  }

  Session& session_;
  const UltramemGenerateOptions& options_;
  std::vector<std::int64_t> stop_, tokens_;
  std::vector<Sampler> samplers_;
  std::vector<std::size_t> active_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void Session::generate(const std::vector<Tokens>& prompts, const UltramemGenerateOptions& options) {
  reset();
  metrics_.first_token_seconds = 0;
  Generation(*this, prompts, options).run(prompts);
}

}  // namespace ultramem::runtime
