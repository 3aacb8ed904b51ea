// minimal BUNDLE PROMPT N: continue a prompt by up to N tokens; the last line is what it took, as JSON.
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <ultramem/ultramem.hpp>

// "504,351,4814" as ids; nothing where the text is no such list.
static ultramem::Ids listed_ids(const std::string& text) {
  if (text.find_first_not_of("0123456789,") != std::string::npos) return {};
  ultramem::Ids ids;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) ids.push_back(std::strtoll(part.c_str(), nullptr, 10));
  return ids;
}

static int failed(const ultramem::Error& error) {
  std::fprintf(stderr, "error: %s\n", error.message().c_str());
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: minimal BUNDLE PROMPT N\n"), 2;
  auto model = ultramem::Model::open(argv[1]);
  if (!model) return failed(model.error());

  ultramem::Ids prompt = listed_ids(argv[2]);
  const bool as_ids = !prompt.empty();
  if (!as_ids) {
    auto ids = model->encode(argv[2]);
    if (!ids) return failed(ids.error());
    prompt = *ids;
  }
  auto session = model->session();
  if (!session) return failed(session.error());
  auto text = as_ids ? ultramem::Result<ultramem::Text>(ultramem::Error(nullptr)) : model->text();
  if (!as_ids && !text) return failed(text.error());

  ultramem::GenerateOptions options;
  options.max_new_tokens = std::strtoll(argv[3], nullptr, 10);
  const char* separator = "";
  options.callback = [&](std::size_t, std::int64_t id) {
    auto piece = as_ids ? ultramem::Result<std::string>(separator + std::to_string(id)) : text->push(id);
    if (piece) std::printf("%s", piece->c_str()), std::fflush(stdout);
    separator = ",";
    return true;
  };
  auto outputs = session->generate({prompt}, options);
  if (!outputs) return failed(outputs.error());

  const UltramemMetrics metrics = session->metrics();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("\n{\"tokens_per_second\": %.2f, \"time_to_first_token_ms\": %.2f, \"rss_mb\": %.1f}\n",
              metrics.tokens_per_second, 1e3 * metrics.first_token_seconds,
              static_cast<double>(usage.ru_maxrss) / 1024);
}
