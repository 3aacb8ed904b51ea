// minimal_tensorrt BUNDLE PROMPT N: as minimal, over a bundle whose graph is a TensorRT engine, on this machine's GPU.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "../command.h"
#include "engine/sequence.h"
#include "runtime/sampler.h"
#include "runtime/tokenizer.h"

using namespace ultramem;

// Text as it comes, where the prompt was text; else ids separated by commas.
class Printer {
 public:
  explicit Printer(const runtime::Tokenizer* tokenizer)
      : tokenizer_(tokenizer), state_(tokenizer == nullptr ? nullptr : tokenizer->make_state()) {}
  Printer(const Printer&) = delete;
  Printer& operator=(const Printer&) = delete;
  ~Printer() {
    if (tokenizer_ != nullptr) tokenizer_->free_state(state_);
  }

  void print(std::int64_t id) {
    const std::string piece =
        tokenizer_ != nullptr ? tokenizer_->push(state_, id) : (first_ ? "" : ",") + std::to_string(id);
    first_ = false;
    std::fputs(piece.c_str(), stdout);
    std::fflush(stdout);
  }

 private:
  const runtime::Tokenizer* tokenizer_;
  runtime::OrtxObject* state_;
  bool first_ = true;
};

static double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

static void generate(const std::string& bundle, const std::string& prompt, std::int64_t count) {
  const auto start = std::chrono::steady_clock::now();
  const engine::Model model(bundle);
  engine::Sequence sequence(model);
  std::vector<std::int64_t> ids = listed_ids(prompt);
  std::unique_ptr<runtime::Tokenizer> tokenizer;
  if (ids.empty()) {
    tokenizer = std::make_unique<runtime::Tokenizer>("", bundle, model.manifest().chat_template);
    ids = tokenizer->encode(prompt);
  }

  Printer printer(tokenizer.get());
  runtime::Sampler greedy(UltramemGenerateOptions ULTRAMEM_GENERATE_OPTIONS_INIT, 0);
  const std::vector<std::int64_t>& ends = model.manifest().end_tokens;
  double first_token = 0, decoding = 0;
  std::int64_t steps = 0;
  for (std::int64_t made = 0; made < count; ++made) {
    const auto step = std::chrono::steady_clock::now();
    sequence.feed(ids);
    if (made > 0) decoding += seconds_since(step), ++steps;
    ids = {greedy.next(sequence.logits(), model.manifest().vocab_size)};
    if (made == 0) first_token = seconds_since(start);
    if (std::find(ends.begin(), ends.end(), ids[0]) != ends.end()) break;
    printer.print(ids[0]);
  }
  print_metrics(steps == 0 ? 0 : static_cast<double>(steps) / decoding, first_token * 1e3);
}

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: minimal_tensorrt BUNDLE PROMPT N\n"), 2;
  try {
    generate(argv[1], argv[2], std::strtoll(argv[3], nullptr, 10));
    return 0;
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "error: %s\n", error.what()), 1;
  }
}
