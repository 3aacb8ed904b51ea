// minimal BUNDLE PROMPT N: continue a prompt by up to N tokens; the last line is what it took, as JSON.
// PROMPT is text, or token ids separated by commas, which are then printed in place of text.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <ultramem/ultramem.hpp>

#include "../command.h"

static int failed(const ultramem::Error& error) {
  std::fprintf(stderr, "error: %s\n", error.message().c_str());
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: minimal BUNDLE PROMPT N\n"), 2;
  const auto start = std::chrono::steady_clock::now();
  auto model = ultramem::Model::open(argv[1]);
  if (!model) return failed(model.error());
  auto session = model->session();
  if (!session) return failed(session.error());

  ultramem::Ids prompt = listed_ids(argv[2]);
  std::optional<ultramem::Text> text;
  if (prompt.empty()) {
    auto ids = model->encode(argv[2]);
    if (!ids) return failed(ids.error());
    auto made = model->text();
    if (!made) return failed(made.error());
    prompt = *ids, text = std::move(*made);
  }

  ultramem::GenerateOptions options;
  options.max_new_tokens = std::strtoll(argv[3], nullptr, 10);
  double first_token_ms = 0;  // from the start of the program: opening the bundle is a part of it
  options.callback = [&](std::size_t, std::int64_t id) {
    const std::chrono::duration<double, std::milli> passed = std::chrono::steady_clock::now() - start;
    const char* separator = first_token_ms == 0 ? "" : ",";
    if (first_token_ms == 0) first_token_ms = passed.count();
    if (!text) return std::printf("%s%lld", separator, static_cast<long long>(id)) > 0;
    if (auto piece = text->push(id)) std::printf("%s", piece->c_str());
    return std::fflush(stdout) == 0;
  };
  auto outputs = session->generate({prompt}, options);
  if (!outputs) return failed(outputs.error());

  print_metrics(session->metrics().tokens_per_second, first_token_ms);
}
