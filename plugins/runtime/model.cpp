#include "model.h"

#include <sched.h>

#include "bundle_files.h"
#include "failure.h"
#include "plugin.h"

namespace ultramem::runtime {
namespace {

constexpr std::int64_t kFloatBytes = 4;

int cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

std::string or_empty(const char* text) { return text == nullptr ? "" : text; }

// Before the operators are registered: they read it then.
void set_tables(const Ort& ort, const Options& options, const std::string& wanted) {
  if (wanted.empty()) return;
  require(wanted == "auto" || wanted == "resident" || wanted == "mapped", ULTRAMEM_CODE_INVALID,
          "tables: expected auto, resident or mapped, found " + wanted);
  ort.check(ort::AddSessionConfigEntry::of(ort.api())(options.get(), "ultramem.tables", wanted.c_str()), "tables");
}

}  // namespace

Model::Model(const std::string& directory, const UltramemModelOptions& given)
    : manifest_(open_bundle(directory, "onnxruntime", given.verify_all != 0)),
      ort_(&Ort::load(or_empty(given.onnxruntime), manifest_.required_onnxruntime)),
      onnxruntime_version_(ort_->version()) {
  require(given.threads >= 0, ULTRAMEM_CODE_INVALID,
          "threads: expected 0 or more, found " + std::to_string(given.threads));
  const Options options = make_options(*ort_);
  const int threads = given.threads > 0 ? given.threads : cores();
  ort_->check(ort::SetIntraOpNumThreads::of(ort_->api())(options.get(), threads), "threads");
  set_tables(*ort_, options, or_empty(given.tables));
  if (manifest_.uses_operators) register_plugin(*ort_, options, directory, manifest_, or_empty(given.plugin));
  graph_ = make_graph(*ort_, directory + "/" + manifest_.graph, options);
  name_ports();
  open_tokenizer(directory, or_empty(given.tokenizer));
}

void Model::name_ports() {
  names_ = {"input_ids", "attention_mask", "logits"};
  for (std::int64_t layer = 0; layer < manifest_.layers; ++layer) {
    for (const char* part : {".key", ".value"}) {
      names_.push_back("past_key_values." + std::to_string(layer) + part);
      names_.push_back("present." + std::to_string(layer) + part);
    }
  }
  inputs_ = {names_[0].c_str(), names_[1].c_str()};
  outputs_ = {names_[2].c_str()};
  for (std::size_t i = 3; i < names_.size(); i += 2) {
    inputs_.push_back(names_[i].c_str());
    outputs_.push_back(names_[i + 1].c_str());
  }
}

// A model without a tokenizer still takes ids: what is wrong is told when text comes.
void Model::open_tokenizer(const std::string& directory, const std::string& library) {
  if (manifest_.tokenizer.empty()) {
    tokenizer_problem_ = directory + ": the bundle holds no tokenizer: pass token ids";
    return;
  }
  try {
    tokenizer_ = std::make_unique<Tokenizer>(library, directory, manifest_.chat_template);
  } catch (const Failure& failure) {
    tokenizer_problem_ = failure.what();
  }
}

const Tokenizer& Model::tokenizer() const {
  require(tokenizer_ != nullptr, ULTRAMEM_CODE_MISSING, tokenizer_problem_);
  return *tokenizer_;
}

std::int64_t Model::cache_bytes_per_token() const {
  return cache_values() * manifest_.kv_heads * manifest_.head_dim * kFloatBytes;
}

std::int64_t Model::table_bytes() const {
  std::int64_t total = 0;
  for (const Table& table : manifest_.tables) total += table.bytes;
  return total;
}

std::int64_t Model::table_bytes_per_token() const {
  std::int64_t total = 0;
  for (const Table& table : manifest_.tables) total += table.rows_per_token * table.row_bytes();
  return total;
}

}  // namespace ultramem::runtime
