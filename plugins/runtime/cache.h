// Key-value caches of the sequences of one session, float32 [sequences, kv_heads, tokens, head_dim] a layer.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model.h"

namespace ultramem::runtime {

// Sequences first, first + 1, ..., first + count - 1.
struct Rows {
  std::size_t first, count;
};

class Cache {
 public:
  virtual ~Cache() = default;

  // Make room for sequences of `tokens` tokens. Throws Failure FULL where that needs more than the limit.
  virtual void reserve(std::int64_t tokens) = 0;
  // The values that a run on `rows` reads, key and value of every layer; valid until the next call.
  virtual std::vector<const OrtValue*> past(Rows rows) = 0;
  // What it writes to: the same memory, or null where ONNX Runtime makes it.
  virtual std::vector<OrtValue*> present(Rows rows) = 0;
  // Take what such a run returned in place of nulls.
  virtual void keep(Rows rows, const std::vector<OrtValue*>& returned) = 0;
  // Whether sequences of different lengths can share a run.
  virtual bool shares_runs() const = 0;
  virtual std::int64_t bytes() const = 0;
};

// An empty cache of the kind that the model's graph takes. `limit` in bytes, 0 for none.
std::unique_ptr<Cache> make_cache(const Model& model, std::size_t sequences, std::int64_t limit);

}  // namespace ultramem::runtime
