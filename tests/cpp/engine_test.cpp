// Running engines, over CUDA's calls on the host, with ONNX Runtime in TensorRT's place: PROGRAM BUNDLE GRAPH PROMPT N
// [TENSORRT]. GRAPH computes what BUNDLE's engine does and takes its tables as inputs too; TENSORRT is a library of
// another major version than this was compiled with. The last line of the output is the greedy continuation of PROMPT.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>

#include "../../plugins/examples/command.h"
#include "check.h"
#include "engine/sequence.h"
#include "runtime/ort.h"
#include "runtime/sampler.h"

extern "C" std::size_t cuda_on_host_held();

namespace {

using namespace ultramem;
using engine::Model;
using engine::Profile;
using engine::Sequence;
using runtime::Failure;

std::string bundle, graph, tensorrt;
std::vector<std::int64_t> prompt;
std::int64_t wanted = 0;

struct Run {
  Profile profile;
  std::int64_t tokens;
};
std::vector<Run> runs;  // of every engine, in their order

class OrtEngine final : public engine::Engine {
 public:
  explicit OrtEngine(const runtime::Manifest& manifest)
      : manifest_(manifest),
        ort_(runtime::Ort::load("", "1.20")),
        graph_(runtime::make_graph(ort_, graph, runtime::make_options(ort_))),
        options_(runtime::make_run_options(ort_)) {
    for (const auto& [input, table] : manifest.engine->bindings) {
      for (auto& shapes : shapes_) shapes[input] = manifest.table(table).shape;
    }
  }

  void set_shape(Profile profile, const std::string& input, const std::vector<std::int64_t>& shape) override {
    shapes_[profile][input] = shape;
  }
  void bind(Profile profile, const std::string& name, void* address) override {
    CHECK(address != nullptr);
    addresses_[profile][name] = address;
  }

  void run(Profile profile, cudaStream_t) override {
    const runtime::EngineInfo& info = *manifest_.engine;
    auto& shapes = shapes_[profile];
    const std::int64_t count = shapes["input_ids"][1], total = shapes["attention_mask"][1];
    CHECK(profile == engine::kDecode ? count == 1 : info.shortest <= count && count <= info.longest);
    runs.push_back({profile, count});
    std::map<std::string, std::vector<std::int64_t>> outputs = {{"logits", {1, count, manifest_.vocab_size}}};
    for (const runtime::CachePort& port : info.caches) outputs[port.output] = {1, port.heads, total, port.width};
    const auto in = values(profile, shapes), out = values(profile, outputs);
    std::vector<const char*> input_names, output_names;
    std::vector<const OrtValue*> given;
    std::vector<OrtValue*> results;
    for (const auto& [name, value] : in) input_names.push_back(name.c_str()), given.push_back(value.get());
    for (const auto& [name, value] : out) output_names.push_back(name.c_str()), results.push_back(value.get());
    ort_.check(ort::Run::of(ort_.api())(graph_.get(), options_.get(), input_names.data(), given.data(), given.size(),
                                        output_names.data(), results.size(), results.data()),
               "a run");
  }

 private:
  // Tensors over the addresses that were bound, as an engine reads and writes them.
  std::map<std::string, runtime::Value> values(Profile profile,
                                               const std::map<std::string, std::vector<std::int64_t>>& shapes) {
    std::map<std::string, runtime::Value> found;
    for (const auto& [name, shape] : shapes) {
      const bool indices =
          name == "input_ids" || name == "attention_mask" || name.find(".shuffle") != std::string::npos;
      void* address = addresses_[profile].at(name);
      found.emplace(name, indices ? runtime::tensor_over(ort_, static_cast<std::int64_t*>(address), shape)
                                  : runtime::tensor_over(ort_, static_cast<float*>(address), shape));
    }
    return found;
  }

  const runtime::Manifest& manifest_;
  const runtime::Ort& ort_;
  runtime::Graph graph_;
  runtime::RunOptions options_;
  std::map<std::string, std::vector<std::int64_t>> shapes_[2];
  std::map<std::string, void*> addresses_[2];
};

std::unique_ptr<engine::Engine> on_ort(const std::string&, const runtime::Manifest& manifest) {
  return std::make_unique<OrtEngine>(manifest);
}

std::vector<std::int64_t> continued(Sequence& sequence, const Model& model) {
  runtime::Sampler greedy(UltramemGenerateOptions ULTRAMEM_GENERATE_OPTIONS_INIT, 0);
  std::vector<std::int64_t> made;
  const auto& ends = model.manifest().end_tokens;
  while (static_cast<std::int64_t>(made.size()) < wanted) {
    const std::int64_t token = greedy.next(sequence.logits(), model.manifest().vocab_size);
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) break;
    made.push_back(token);
    if (static_cast<std::int64_t>(made.size()) < wanted) sequence.feed({token});
  }
  return made;
}

std::vector<std::int64_t> generated() {
  const Model model(bundle, on_ort);
  Sequence sequence(model);
  sequence.feed(prompt);
  return continued(sequence, model);
}

template <typename Work>
void check_refused(UltramemCode code, const char* part, const Work& work) {
  try {
    work();
    CHECK(!"refused");
  } catch (const Failure& failure) {
    CHECK(failure.code == code);
    CHECK_TEXT(failure.what(), part);
    CHECK(std::string(failure.what()).find('\n') == std::string::npos);
  }
}

class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

TEST(a_prompt_in_pieces_is_the_prompt_at_once) {
  const Model model(bundle, on_ort);
  const std::int64_t longest = model.info().longest, shortest = model.info().shortest;
  CHECK(shortest == 3 && longest == 8);
  Sequence whole(model), pieces(model);
  runs.clear();
  whole.feed({1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  CHECK(runs.size() == 3 && runs[0].tokens == 8 && runs[1].profile == engine::kDecode && runs[2].tokens == 1);
  runs.clear();
  pieces.feed({1, 2, 3, 4, 5});
  pieces.feed({6});
  pieces.feed({7, 8, 9, 10});
  CHECK(runs.size() == 3 && runs[0].profile == engine::kPrefill && runs[1].profile == engine::kDecode);
  CHECK(whole.length() == 10 && pieces.length() == 10);
  for (std::int64_t i = 0; i < model.manifest().vocab_size; ++i) {
    CHECK(std::abs(whole.logits()[i] - pieces.logits()[i]) < 1e-4f);  // float32 sums in another order
  }
}

TEST(tables_in_host_memory_give_the_same_tokens) {
  const std::vector<std::int64_t> expected = generated();
  const Variable host("ULTRAMEM_GPU_TABLES", "host");
  CHECK(generated() == expected);
}

TEST(models_share_their_tables_and_give_everything_back) {
  {
    const Model first(bundle, on_ort);
    const std::size_t tables = cuda_on_host_held();
    CHECK(tables > 0);
    const Model second(bundle, on_ort);
    CHECK(cuda_on_host_held() == tables);
  }
  CHECK(cuda_on_host_held() == 0);
}

TEST(what_a_sequence_does_not_take) {
  const Model model(bundle, on_ort);
  Sequence sequence(model);
  sequence.feed(prompt);
  const std::vector<float> before(sequence.logits(), sequence.logits() + model.manifest().vocab_size);
  check_refused(ULTRAMEM_CODE_INVALID, "token 61 is outside the vocabulary [0, 61)", [&] { sequence.feed({4, 61}); });
  check_refused(ULTRAMEM_CODE_INVALID, "token -1", [&] { sequence.feed({-1}); });
  check_refused(ULTRAMEM_CODE_INVALID, "found none", [&] { sequence.feed({}); });
  const std::vector<std::int64_t> many(static_cast<std::size_t>(model.info().context), 1);
  check_refused(ULTRAMEM_CODE_FULL, "tokens, the engine was built for", [&] { sequence.feed(many); });
  CHECK(std::equal(before.begin(), before.end(), sequence.logits()));
  CHECK(sequence.length() == static_cast<std::int64_t>(prompt.size()));
}

// What stops the real one before it has loaded anything.
TEST(a_machine_that_an_engine_was_not_built_for) {
  runtime::Manifest manifest = runtime::read_manifest(bundle);
  const auto load = [&] { engine::load_engine(bundle, manifest); };
  {
    const Variable none("CUDA_ON_HOST_DEVICES", "0");
    check_refused(ULTRAMEM_CODE_MISSING, "no NVIDIA GPU or driver on this machine", load);
  }
  manifest.engine->capabilities = {"9.0"};
  check_refused(ULTRAMEM_CODE_VERSION, "this GPU has compute capability 8.9, for which the engine was not built", load);
  manifest.engine->capabilities = {};
  manifest.engine->least_capability = "10.0";
  check_refused(ULTRAMEM_CODE_VERSION, "compute capability 8.9", load);
  manifest.engine->least_capability = "8.0";
  {
    const Variable named("ULTRAMEM_TENSORRT", "/nowhere/libnvinfer.so");
    check_refused(ULTRAMEM_CODE_MISSING, "TensorRT: cannot load /nowhere/libnvinfer.so", load);
  }
  if (tensorrt.empty()) return;
  const Variable named("ULTRAMEM_TENSORRT", tensorrt);
  check_refused(ULTRAMEM_CODE_VERSION, "the engine is for tensorrt-rtx, this program was compiled for tensorrt", load);
  manifest.engine->backend = "tensorrt";
  const std::string major = std::to_string(NV_TENSORRT_MAJOR);
  check_refused(ULTRAMEM_CODE_VERSION, ("this program was compiled for " + major + ":").c_str(), load);
}

TEST(a_damaged_bundle) {
  runtime::Manifest manifest = runtime::read_manifest(bundle);
  CHECK(manifest.engine && !manifest.engine->bindings.empty() && manifest.engine->caches.size() == 4);
  check_refused(ULTRAMEM_CODE_MISSING, "holds no manifest.json", [] { const Model model("/nowhere", on_ort); });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  bundle = argv[1], graph = argv[2], prompt = listed_ids(argv[3]), wanted = std::atoll(argv[4]);
  tensorrt = argc > 5 ? argv[5] : "";
  for (const check::Test& test : check::tests()) {
    const int before = check::failures;
    test.run();
    std::cerr << (check::failures == before ? "ok   " : "FAIL ") << test.name << "\n";
  }
  std::string line;
  for (const std::int64_t token : generated()) line += (line.empty() ? "" : ",") + std::to_string(token);
  std::cout << line << "\n";
  return check::failures == 0 ? 0 : 1;
}
