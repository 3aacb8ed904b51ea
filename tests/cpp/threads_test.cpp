// One model and many threads, over a stub of ONNX Runtime so that ThreadSanitizer sees every access.
#include <atomic>
#include <cstdlib>
#include <thread>
#include <ultramem/ultramem.hpp>

#include "check.h"
#include "places.h"

using namespace ultramem;

namespace {

Model stubbed() {
  ModelOptions options;
  options.onnxruntime = std::getenv("STUB_ORT");
  auto model = Model::open(places::bundle, options);
  if (!model) {
    std::cerr << model.error().message() << "\n";
    std::exit(1);
  }
  return std::move(*model);
}

GenerateOptions new_tokens(std::int64_t count) {
  GenerateOptions options;
  options.max_new_tokens = count;
  options.ignore_end = 1;
  return options;
}

void in_threads(int count, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST(sessions_side_by_side) {
  const Model model = stubbed();
  std::atomic<int> wrong{0};
  in_threads(8, [&](int i) {
    auto session = std::move(*model.session());
    for (int round = 0; round < 20; ++round) {
      // The stub's next token is the sum of the last token and the length.
      auto outputs = session.generate({{i, i + 1}, {i}}, new_tokens(20));
      std::int64_t expected = i;
      for (std::size_t at = 0; outputs && at < 20; ++at) {
        expected = (expected + static_cast<std::int64_t>(at) + 1) % 61;
        if ((*outputs)[1].ids[at] != expected) ++wrong;
      }
      if (!outputs) ++wrong;
    }
  });
  CHECK(wrong == 0);
}

TEST(models_opened_at_once) {
  in_threads(4, [](int) {
    const Model model = stubbed();
    auto session = std::move(*model.session());
    (void)session.prefill({{1, 2, 3}});
  });
}

TEST(cancel_at_any_time) {
  const Model model = stubbed();
  std::atomic<int> wrong{0};
  in_threads(4, [&](int) {
    auto session = std::move(*model.session());
    std::atomic<bool> stop{false};
    std::thread other([&] {
      while (!stop) session.cancel();
    });
    for (int round = 0; round < 50; ++round) {
      auto outputs = session.generate({{1, 2}}, new_tokens(50));
      if (!outputs && outputs.error().code() != ULTRAMEM_CODE_CANCELLED) ++wrong;
    }
    stop = true;
    other.join();
  });
  CHECK(wrong == 0);
}
