// Sessions over real bundles: sequences of different lengths, limits, cancellation, errors that change nothing.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <ultramem/ultramem.hpp>

#include "check.h"
#include "places.h"

using ultramem::GenerateOptions;
using ultramem::Ids;
using ultramem::Model;
using ultramem::Session;
using ultramem::SessionOptions;

namespace {

constexpr std::size_t kVocabulary = 61;
// Float32 sums in another order: a batch may be cut into other pieces than one row.
constexpr float kTolerance = 1e-4f;

Model opened(const std::string& bundle = places::bundle) {
  auto model = Model::open(bundle);
  if (!model) {
    std::cerr << model.error().message() << "\n";
    std::exit(1);
  }
  return std::move(*model);
}

Session session_of(const Model& model, std::int64_t max_tokens = 0) {
  SessionOptions options;
  options.max_tokens = max_tokens;
  return std::move(*model.session(options));
}

Ids counting(std::size_t count, std::int64_t step = 7) {
  Ids ids(count);
  for (std::size_t i = 0; i < count; ++i) ids[i] = (static_cast<std::int64_t>(i) * step + 3) % 60;
  return ids;
}

GenerateOptions new_tokens(std::int64_t count) {
  GenerateOptions options;
  options.max_new_tokens = count;
  options.ignore_end = 1;
  return options;
}

Ids generated(const Model& model, const Ids& prompt, std::int64_t count) {
  auto session = session_of(model);
  auto outputs = session.generate({prompt}, new_tokens(count));
  CHECK(outputs);
  return outputs ? (*outputs)[0].ids : Ids();
}

bool close(const float* a, const float* b) {
  for (std::size_t i = 0; i < kVocabulary; ++i) {
    if (!(std::abs(a[i] - b[i]) <= kTolerance)) return false;
  }
  return true;
}

std::vector<float> logits_of(const Session& session, std::size_t sequence = 0) {
  const float* found = *session.logits(sequence);
  return {found, found + kVocabulary};
}

}  // namespace

TEST(sequences_of_different_lengths_share_runs) {
  for (const std::string& bundle : {places::bundle, places::portable}) {
    const Model model = opened(bundle);
    const std::vector<Ids> prompts = {counting(5), counting(1), counting(17, 11), counting(9, 3)};
    auto together = session_of(model);
    auto outputs = together.generate(prompts, new_tokens(20));
    CHECK(outputs);
    if (!outputs) continue;
    for (std::size_t i = 0; i < prompts.size(); ++i) CHECK((*outputs)[i].ids == generated(model, prompts[i], 20));
  }
}

TEST(sequences_end_apart) {
  const Model model = opened();
  const std::vector<Ids> prompts = {counting(5), counting(4), counting(17, 11)};
  std::vector<Ids> expected;
  for (const Ids& prompt : prompts) expected.push_back(generated(model, prompt, 12));
  auto options = new_tokens(12);
  // The middle one leaves after three tokens: the others no longer lie side by side.
  options.callback = [count = 0](std::size_t sequence, std::int64_t) mutable { return sequence != 1 || ++count < 3; };
  auto session = session_of(model);
  auto outputs = session.generate(prompts, options);
  CHECK(outputs);
  if (!outputs) return;
  CHECK((*outputs)[0].ids == expected[0] && (*outputs)[2].ids == expected[2]);
  CHECK((*outputs)[0].finish == ULTRAMEM_FINISH_LENGTH && (*outputs)[1].finish == ULTRAMEM_FINISH_CALLER);
  CHECK((*outputs)[1].ids == Ids(expected[1].begin(), expected[1].begin() + 3));
}

TEST(prompts_in_pieces) {
  for (const std::string& bundle : {places::bundle, places::portable}) {
    const Model model = opened(bundle);
    const Ids prompt = counting(40);
    auto whole = session_of(model), parts = session_of(model), steps = session_of(model);
    CHECK(whole.prefill({prompt}));
    CHECK(parts.prefill({Ids(prompt.begin(), prompt.begin() + 13)}));
    CHECK(parts.prefill({Ids(prompt.begin() + 13, prompt.end())}));
    CHECK(steps.prefill({Ids(prompt.begin(), prompt.begin() + 1)}));
    for (std::size_t i = 1; i < prompt.size(); ++i) CHECK(steps.decode({prompt[i]}));
    CHECK(close(logits_of(whole).data(), logits_of(parts).data()));
    CHECK(close(logits_of(whole).data(), logits_of(steps).data()));
  }
}

TEST(long_prompts_run_in_chunks) {
  const places::Copy copy;
  auto manifest = copy.manifest();
  manifest["graph"]["prefill_chunk"] = 7;
  copy.set(manifest);
  const Model chunked = opened(copy.path()), model = opened();
  CHECK(generated(chunked, counting(50), 5) == generated(model, counting(50), 5));
}

TEST(the_cache_grows) {
  const Model model = opened();
  const Ids prompt = counting(250);
  Ids all = prompt;
  const Ids ids = generated(model, prompt, 40);  // past the 256 tokens that it starts with
  all.insert(all.end(), ids.begin(), ids.end() - 1);
  auto session = session_of(model);
  CHECK(session.prefill({all}));
  const auto logits = logits_of(session);
  CHECK(std::max_element(logits.begin(), logits.end()) - logits.begin() == ids.back());
}

TEST(tokens_outside_the_vocabulary) {
  const Model model = opened();
  auto session = session_of(model), untouched = session_of(model);
  CHECK(session.prefill({counting(4)}) && untouched.prefill({counting(4)}));
  CHECK_ERROR(session.prefill({{5, 61}}), ULTRAMEM_CODE_INVALID,
              "token 61 at position 1 is outside the vocabulary [0, 61)");
  CHECK_ERROR(session.decode({-1}), ULTRAMEM_CODE_INVALID, "token -1");
  CHECK_ERROR(session.prefill({{}}), ULTRAMEM_CODE_INVALID, "at least one token");
  CHECK(session.decode({9}) && untouched.decode({9}));
  CHECK(logits_of(session) == logits_of(untouched));
}

TEST(full_cache) {
  const Model model = opened();
  auto session = session_of(model, 8);
  CHECK_ERROR(session.prefill({counting(9)}), ULTRAMEM_CODE_FULL, "9 tokens, the session holds 8: raise max_tokens");
  CHECK(session.prefill({counting(8)}));
  CHECK_ERROR(session.decode({1}), ULTRAMEM_CODE_FULL, "the model has 512 positions");
  CHECK_ERROR(session.generate({counting(5)}, new_tokens(10)), ULTRAMEM_CODE_FULL, "9 tokens");
  session.reset();
  CHECK(session.prefill({counting(8)}));
  auto whole = session_of(model);
  CHECK_ERROR(whole.prefill({counting(513)}), ULTRAMEM_CODE_FULL, "513 tokens, the session holds 512");
  SessionOptions options;
  options.max_tokens = 513;
  CHECK_ERROR(model.session(options), ULTRAMEM_CODE_INVALID, "max_tokens: expected 0 to 512");
}

TEST(memory_limit) {
  for (const std::string& bundle : {places::bundle, places::portable}) {
    const Model model = opened(bundle);
    SessionOptions options;
    options.memory_limit_bytes = 20 * model.info().cache_bytes_per_token;
    auto session = std::move(*model.session(options));
    CHECK(session.prefill({counting(20)}));
    CHECK(session.metrics().cache_bytes <= options.memory_limit_bytes);
    CHECK_ERROR(session.decode({1}), ULTRAMEM_CODE_FULL, "memory_limit_bytes is");
    session.reset();
    CHECK_ERROR(session.prefill({counting(11), counting(5)}), ULTRAMEM_CODE_FULL, "fewer or shorter sequences");
  }
}

TEST(cancel_from_another_thread) {
  const Model model = opened();
  auto session = session_of(model);
  std::thread other;
  auto options = new_tokens(400);
  options.callback = [&](std::size_t, std::int64_t) {
    if (!other.joinable()) other = std::thread([&] { session.cancel(); });
    return true;
  };
  CHECK_ERROR(session.generate({counting(3)}, options), ULTRAMEM_CODE_CANCELLED, "cancelled");
  other.join();
  CHECK((*session.generate({counting(3)}, new_tokens(6)))[0].ids == generated(model, counting(3), 6));
}

TEST(time_limit) {
  const Model model = opened();
  auto session = session_of(model);
  auto options = new_tokens(400);
  options.time_limit_seconds = 0.05;
  options.callback = [](std::size_t, std::int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return true;
  };
  auto outputs = session.generate({counting(3)}, options);
  CHECK(outputs && (*outputs)[0].finish == ULTRAMEM_FINISH_TIME);
  CHECK(outputs && !(*outputs)[0].ids.empty() && (*outputs)[0].ids.size() < 5);
}

TEST(stop_tokens) {
  const Model model = opened();
  const Ids expected = generated(model, counting(5), 12);
  const std::int64_t stop = expected[6];
  const auto first = std::find(expected.begin(), expected.end(), stop);
  auto options = new_tokens(12);
  options.stop_tokens = &stop;
  options.stop_count = 1;
  auto session = session_of(model);
  auto outputs = session.generate({counting(5)}, options);
  CHECK(outputs && (*outputs)[0].ids == Ids(expected.begin(), first));
  CHECK(outputs && (*outputs)[0].finish == ULTRAMEM_FINISH_STOP);
}

TEST(sampling_repeats_with_its_seed) {
  const Model model = opened();
  auto options = new_tokens(30);
  options.temperature = 1;
  const auto sampled = [&](std::uint64_t seed) {
    auto session = session_of(model);
    options.seed = seed;
    return (*session.generate({counting(5)}, options))[0].ids;
  };
  CHECK(sampled(1) == sampled(1) && sampled(1) != sampled(2));
}

TEST(wrong_calls) {
  const Model model = opened();
  auto session = session_of(model);
  CHECK_ERROR(session.decode({1}), ULTRAMEM_CODE_INVALID, "prefill them first");
  CHECK_ERROR(session.logits(0), ULTRAMEM_CODE_INVALID, "holds 0 sequences, found sequence 0");
  CHECK_ERROR(session.prefill({}), ULTRAMEM_CODE_INVALID, "at least one sequence");
  CHECK(session.prefill({counting(2), counting(3)}));
  CHECK_ERROR(session.prefill({counting(2)}), ULTRAMEM_CODE_INVALID, "holds 2 sequences, found 1: reset it first");
  CHECK_ERROR(session.generate({counting(2)}, new_tokens(0)), ULTRAMEM_CODE_INVALID, "max_new_tokens");
  CHECK_ERROR(ultramem::status_of(ultramem_generate(nullptr, nullptr, nullptr, 0, nullptr)), ULTRAMEM_CODE_INVALID,
              "session: expected a pointer");
}

TEST(metrics_count) {
  const Model model = opened();
  auto session = session_of(model);
  CHECK(session.generate({counting(5), counting(9)}, new_tokens(11)));
  const UltramemMetrics metrics = session.metrics();
  CHECK(metrics.prompt_tokens == 14 && metrics.decoded_tokens == 20);
  CHECK(metrics.table_bytes_read == 20 * model.info().table_bytes_per_token);
  CHECK(metrics.prefill_seconds > 0 && metrics.decode_seconds > 0 && metrics.first_token_seconds > 0);
  CHECK(std::abs(metrics.tokens_per_second * metrics.decode_seconds - 20) < 1e-6);
  CHECK(metrics.cache_bytes == 2 * 256 * model.info().cache_bytes_per_token);
}

TEST(an_older_caller) {
  // Its structs end earlier than ours: what it does not know keeps its default, and is not written.
  const Model model = opened();
  auto session = session_of(model);
  struct {
    std::size_t struct_size;
    std::int64_t prompt_tokens, guard;
  } old{sizeof(std::size_t) + sizeof(std::int64_t), 1, 77};
  CHECK(session.prefill({counting(5)}));
  UltramemSession* raw = nullptr;
  UltramemModel* opened_raw = nullptr;
  CHECK(ultramem_model_open(places::bundle.c_str(), nullptr, &opened_raw) == nullptr);
  CHECK(ultramem_session_create(opened_raw, nullptr, &raw) == nullptr);
  const std::int64_t token = 3;
  const std::int64_t* tokens[] = {&token};
  const std::size_t lengths[] = {1};
  CHECK(ultramem_session_prefill(raw, tokens, lengths, 1) == nullptr);
  CHECK(ultramem_session_metrics(raw, reinterpret_cast<UltramemMetrics*>(&old)) == nullptr);
  CHECK(old.prompt_tokens == 1 && old.guard == 77);
  ultramem_session_close(raw);
  ultramem_model_close(opened_raw);
}

TEST(text) {
  const Model model = opened();
  const std::string written = "the query finds a café 漢字.";
  auto ids = model.encode(written);
  auto text = model.text();
  CHECK(ids && text && ids->size() >= 2);
  if (!ids || !text) return;
  std::string read;
  for (const std::int64_t id : *ids) read += *text->push(id);
  CHECK(read == written);
  CHECK_ERROR(model.encode_chat("[]"), ULTRAMEM_CODE_MISSING, "no chat template");
}
