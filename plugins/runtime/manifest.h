// manifest.json, as ultramem_deploy/runtime/manifest.py describes it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ultramem::runtime {

constexpr std::int64_t kSchema = 1;

struct Table {
  std::string name, file, dtype;
  std::int64_t offset, bytes, rows_per_token;
  std::vector<std::int64_t> shape;

  std::int64_t row_bytes() const { return shape.empty() || shape[0] == 0 ? 0 : bytes / shape[0]; }
};

struct Plugin {
  std::string file, host, platform, version;
};

struct File {
  std::int64_t size;
  std::string sha256;
};

struct Manifest {
  std::string runtime;
  std::string required_onnxruntime, required_plugin, tool_version;
  std::int64_t operators_version;
  std::string graph;
  bool packed_cache;    // GroupQueryAttention's cache in place; otherwise every step returns a new one
  bool uses_operators;  // of ai.ultramem
  std::int64_t positions, prefill_chunk;
  std::int64_t vocab_size, layers, kv_heads, head_dim;
  std::vector<std::int64_t> end_tokens;
  std::string tokenizer, chat_template;  // files, "" for none
  std::vector<Table> tables;
  std::vector<Plugin> plugins;
  std::map<std::string, File> files;
};

// Throws Failure: DAMAGED for what is no manifest, VERSION for a newer schema, naming the key.
Manifest parse_manifest(const std::string& text);

// The manifest of the bundle in `directory`. Throws Failure MISSING where there is none.
Manifest read_manifest(const std::string& directory);

}  // namespace ultramem::runtime
