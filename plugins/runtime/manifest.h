// manifest.json, as ultramem_deploy/runtime/manifest.py describes it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ultramem::runtime {

constexpr std::int64_t kSchema = 1;

struct Table {
  std::string name, file, dtype;
  std::int64_t offset, bytes, rows_per_token;
  std::vector<std::int64_t> shape;
  std::string fingerprint;  // as gpu_tables/fingerprint.h has it; "" where the runtime has no use for it

  std::int64_t row_bytes() const { return shape.empty() || shape[0] == 0 ? 0 : bytes / shape[0]; }
};

struct Plugin {
  std::string file, host, platform, version;
};

struct File {
  std::int64_t size;
  std::string sha256;
};

// A layer's keys or values: an input of the engine, the output that takes its place, heads and numbers a head.
struct CachePort {
  std::string input, output;
  std::int64_t heads, width;
};

// Of a bundle whose graph is a TensorRT engine: what it needs, and how it is called.
struct EngineInfo {
  std::string backend, version;  // what built it
  bool version_compatible;       // newer releases run it too
  bool embeds_plugin, weight_streaming;
  std::vector<std::string> capabilities;  // compute capabilities that it runs on; empty for all
  std::string least_capability;
  std::int64_t shortest, longest;  // tokens of one run over a prompt
  std::int64_t context;            // the most tokens of a sequence
  std::int64_t cache_item_bytes;
  std::vector<CachePort> caches;
  std::map<std::string, std::string> bindings;  // input -> name of the table that it is
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
  std::optional<EngineInfo> engine;

  // The table called `name`, which parse_manifest has made sure of for every binding.
  const Table& table(const std::string& name) const;
};

// Throws Failure: DAMAGED for what is no manifest, VERSION for a newer schema, naming the key.
Manifest parse_manifest(const std::string& text);

// The manifest of the bundle in `directory`. Throws Failure MISSING where there is none.
Manifest read_manifest(const std::string& directory);

}  // namespace ultramem::runtime
