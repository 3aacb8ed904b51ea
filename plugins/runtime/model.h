// An opened bundle: checked files, one ONNX Runtime session that all threads share, a tokenizer where there is one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "include/ultramem/ultramem.h"
#include "manifest.h"
#include "ort.h"
#include "tokenizer.h"

namespace ultramem::runtime {

class Model {
 public:
  Model(const std::string& directory, const UltramemModelOptions& options);

  const Manifest& manifest() const { return manifest_; }
  const Ort& ort() const { return *ort_; }
  OrtSession* graph() const { return graph_.get(); }

  // Throws Failure MISSING that says why where there is none.
  const Tokenizer& tokenizer() const;
  const std::string& tokenizer_problem() const { return tokenizer_problem_; }

  // In the graph's order: input_ids, attention_mask, then key and value of every layer.
  const std::vector<const char*>& input_names() const { return inputs_; }
  // logits, then key and value of every layer.
  const std::vector<const char*>& output_names() const { return outputs_; }

  std::int64_t cache_values() const { return 2 * manifest_.layers; }
  std::int64_t cache_bytes_per_token() const;
  std::int64_t table_bytes() const;
  std::int64_t table_bytes_per_token() const;
  const std::string& onnxruntime_version() const { return onnxruntime_version_; }

 private:
  void name_ports();
  void open_tokenizer(const std::string& directory, const std::string& library);

  Manifest manifest_;
  const Ort* ort_;
  Graph graph_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string tokenizer_problem_, onnxruntime_version_;
  std::vector<std::string> names_;
  std::vector<const char*> inputs_, outputs_;
};

}  // namespace ultramem::runtime
