// Readers, versions, hashes and the sampler, from inside.
#include <cmath>
#include <map>

#include "check.h"
#include "places.h"
#include "runtime/failure.h"
#include "runtime/manifest.h"
#include "runtime/safetensors.h"
#include "runtime/sampler.h"
#include "runtime/sha256.h"
#include "runtime/version.h"

using namespace ultramem::runtime;
using nlohmann::json;

namespace {

// The message of what `work` throws, "" for nothing.
template <typename Work>
std::string failure_of(Work work) {
  try {
    work();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

std::string safetensors(const std::string& header, std::size_t data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> 8 * i & 255);
  return bytes + header + std::string(data, '\0');
}

UltramemGenerateOptions sampling() { return ULTRAMEM_GENERATE_OPTIONS_INIT; }

}  // namespace

TEST(versions) {
  CHECK(at_least("1.20", "1.20") && at_least("1.20.0", "1.20") && at_least("1.31.1+cpu", "1.20.9"));
  CHECK(at_least("2", "1.99.99") && at_least("0.1.0.dev3", "0.1.0"));
  CHECK(!at_least("1.9", "1.20") && !at_least("1.19.9", "1.20") && !at_least("", "0.0.1") && !at_least("x", "1"));
}

TEST(hashes) {
  // FIPS 180-4's examples, and lengths around a block's end.
  const std::map<std::string, std::string> known = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
      {std::string(1'000'000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
      {std::string(1 << 20, 'a'), "9bc1b2a288b26af7257a36277ae3816a7d4f16e89c1e7e77d0a5c48bad62b360"}};
  for (const auto& [text, hash] : known) {
    places::write(places::scratch + "/hashed", text);
    CHECK(sha256_file(places::scratch + "/hashed") == hash);
  }
  CHECK_TEXT(failure_of([] { sha256_file("/nowhere"); }), "cannot be opened");
}

TEST(manifests) {
  const json good = json::parse(places::text_of(places::bundle + "/manifest.json"));
  CHECK(parse_manifest(good.dump()).tables.size() == good["tables"].size());
  const std::vector<std::pair<const char*, const char*>> wrong = {
      {R"({"format": "zip"})", "format"},
      {R"({"schema": "1"})", "schema: expected an integer"},
      {R"({"schema": 0})", "schema: expected a number from 1"},
      {R"({"schema": 1e400})", "not JSON"},
      {R"({"graph": 3})", "graph: expected an object"},
      {R"({"graph": {"file": "/etc/passwd"}})", "a relative path inside the bundle"},
      {R"({"tables": [{"file": "a/../../b"}]})", "tables.name: expected a value"},
      {R"({"tables": {}})", "tables: expected a list"},
      {R"({"tables": [7]})", "tables: expected an object"},
      {R"({"files": {"../x": {"size": 1, "sha256": ""}}})", "a relative path inside the bundle"},
      {R"({"files": {"x": {"size": -1, "sha256": ""}}})", "files.x.size: expected a number from 0"},
      {R"({"files": {"x": {"size": 18446744073709551615, "sha256": ""}}})", "files.x.size"},
      {R"({"files": {}})", "a file that \"files\" lists"},
      {R"({"model": {"decoder": {}}})", "model.decoder.vocab_size: expected a value"},
      {R"({"tokenizer": {"file": ".."}})", "tokenizer.file"}};
  for (const auto& [change, message] : wrong) {
    json changed = good;
    const json patch = json::parse(change, nullptr, false);
    if (!patch.is_discarded()) changed.update(patch);
    const std::string text = patch.is_discarded() ? change : changed.dump();
    CHECK_TEXT(failure_of([&] { parse_manifest(text); }), message);
  }
  const std::string whole = good.dump();
  for (std::size_t size = 0; size < whole.size(); size += 97) {
    CHECK_TEXT(failure_of([&] { parse_manifest(whole.substr(0, size)); }), "not JSON");
  }
}

TEST(safetensors_headers) {
  const std::string header = R"({"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"__metadata__":{"b":"c"}})";
  const std::string file = safetensors(header, 16);
  const auto size = static_cast<std::int64_t>(file.size());
  const auto found = parse_safetensors(file, size, "f");
  CHECK(found.size() == 1 && found.at("a").dtype == "bfloat16" && found.at("a").bytes == 12);
  CHECK(found.at("a").offset == 12 + static_cast<std::int64_t>(header.size()));
  CHECK((found.at("a").shape == std::vector<std::int64_t>{2, 3}));
  CHECK_TEXT(failure_of([&] { parse_safetensors(file, size - 1, "f"); }), "the file is truncated");
  for (std::size_t cut = 0; cut < 8 + header.size(); cut += 7) {
    CHECK_TEXT(failure_of([&] { parse_safetensors(file.substr(0, cut), size, "f"); }), "header is cut");
  }
  for (const char* bad : {"[]", "{", R"({"a":1})", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}})",
                          R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})",
                          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99]}})",
                          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}})",
                          R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})"}) {
    const std::string bytes = safetensors(bad, 16);
    CHECK(!failure_of([&] { parse_safetensors(bytes, static_cast<std::int64_t>(bytes.size()), "f"); }).empty());
  }
}

TEST(greedy_and_penalty) {
  const std::vector<float> logits = {1, 4, 3, -2};
  auto options = sampling();
  CHECK(Sampler(options, 0).next(logits.data(), 4) == 1);
  options.repetition_penalty = 2;  // 4 becomes 2, less than 3
  Sampler sampler(options, 0);
  sampler.saw(1);
  sampler.saw(1);
  CHECK(sampler.next(logits.data(), 4) == 2);
  sampler.saw(2);  // 3 becomes 1.5, less than 2
  CHECK(sampler.next(logits.data(), 4) == 1);
  const std::vector<float> negative = {-1, -1.5f};
  Sampler other(options, 0);
  other.saw(0);  // -1 becomes -2
  CHECK(other.next(negative.data(), 2) == 1);
}

TEST(draws_follow_the_softmax) {
  const std::vector<float> logits = {1, 3, 2, 0};
  auto options = sampling();
  options.temperature = 2;
  constexpr int kDraws = 20000;
  // (top_k, top_p) and how many of the most probable tokens (1, 2, 0, 3) remain; their softmax masses at temperature 2
  // are 0.455, 0.276, 0.167, 0.102.
  for (const auto& [k, p, kept] : {std::tuple(0, 1.0f, 4), {2, 1.0f, 2}, {0, 0.5f, 2}, {0, 0.4f, 1}, {3, 0.99f, 3}}) {
    options.top_k = k, options.top_p = p;
    Sampler sampler(options, 0);
    std::vector<int> counts(4);
    for (int i = 0; i < kDraws; ++i) ++counts[static_cast<std::size_t>(sampler.next(logits.data(), 4))];
    const std::vector<std::size_t> order = {1, 2, 0, 3};
    double total = 0;
    for (int i = 0; i < kept; ++i) total += std::exp(logits[order[static_cast<std::size_t>(i)]] / 2.0);
    for (int i = 0; i < 4; ++i) {
      const std::size_t token = order[static_cast<std::size_t>(i)];
      const double share = i < kept ? std::exp(logits[token] / 2.0) / total : 0;
      // Five standard deviations of a binomial count.
      CHECK(std::abs(counts[token] - share * kDraws) <= 5 * std::sqrt(kDraws * share * (1 - share)) + 1e-9);
    }
  }
}

TEST(seeds_repeat) {
  const std::vector<float> logits = {1, 1.1f, 1.2f, 0.9f};
  auto options = sampling();
  options.temperature = 1, options.seed = 7;
  const auto drawn = [&](std::size_t sequence) {
    Sampler sampler(options, sequence);
    std::vector<std::int64_t> found;
    for (int i = 0; i < 50; ++i) found.push_back(sampler.next(logits.data(), 4));
    return found;
  };
  CHECK(drawn(0) == drawn(0) && drawn(0) != drawn(1));
}

TEST(sampler_options) {
  for (const auto& [change, message] : std::vector<std::pair<void (*)(UltramemGenerateOptions&), const char*>>{
           {[](auto& o) { o.temperature = -1; }, "temperature: expected 0 or more"},
           {[](auto& o) { o.temperature = NAN; }, "temperature"},
           {[](auto& o) { o.top_p = 0; }, "top_p: expected more than 0, at most 1"},
           {[](auto& o) { o.top_p = 1.5f; }, "top_p"},
           {[](auto& o) { o.top_k = -1; }, "top_k: expected 0 or more"},
           {[](auto& o) { o.repetition_penalty = 0; }, "repetition_penalty"}}) {
    auto options = sampling();
    change(options);
    CHECK_TEXT(failure_of([&] { Sampler(options, 0); }), message);
  }
}
