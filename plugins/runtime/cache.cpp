#include "cache.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "failure.h"

namespace ultramem::runtime {
namespace {

constexpr std::int64_t kFirstCapacity = 256;

void check_limit(std::int64_t bytes, std::int64_t limit) {
  require(limit == 0 || bytes <= limit, ULTRAMEM_CODE_FULL,
          "key-value cache: needs " + std::to_string(bytes) + " bytes, memory_limit_bytes is " + std::to_string(limit) +
              ": raise it, or use fewer or shorter sequences");
}

// GroupQueryAttention reads and writes one buffer with room to spare; sequences lie one behind the other in it, so that
// any of them side by side are a tensor of their own.
class PackedCache : public Cache {
 public:
  PackedCache(const Model& model, std::size_t sequences, std::int64_t limit)
      : model_(model), sequences_(sequences), limit_(limit), buffers_(static_cast<std::size_t>(model.cache_values())) {}

  void reserve(std::int64_t tokens) override {
    if (tokens <= capacity_) return;
    const std::int64_t most = model_.manifest().positions;
    std::int64_t wanted = std::min(std::max({tokens, 2 * capacity_, kFirstCapacity}), std::max(most, tokens));
    if (limit_ != 0 && bytes_of(wanted) > limit_) wanted = tokens;
    check_limit(bytes_of(wanted), limit_);
    for (auto& buffer : buffers_) buffer = grown(buffer.get(), wanted);
    capacity_ = wanted;
    values_.clear();
  }

  std::vector<const OrtValue*> past(Rows rows) override {
    view(rows);
    std::vector<const OrtValue*> found;
    for (const Value& value : values_) found.push_back(value.get());
    return found;
  }

  std::vector<OrtValue*> present(Rows rows) override {
    view(rows);
    std::vector<OrtValue*> found;
    for (const Value& value : values_) found.push_back(value.get());
    return found;
  }

  void keep(Rows, const std::vector<OrtValue*>&) override {}
  bool shares_runs() const override { return true; }
  std::int64_t bytes() const override { return bytes_of(capacity_); }

 private:
  using Buffer = std::unique_ptr<float[]>;

  std::int64_t heads() const { return model_.manifest().kv_heads; }
  std::int64_t width() const { return model_.manifest().head_dim; }
  std::int64_t bytes_of(std::int64_t tokens) const {
    return static_cast<std::int64_t>(sequences_) * tokens * model_.cache_bytes_per_token();
  }

  // Each head of each sequence keeps its tokens at the start of its part.
  Buffer grown(const float* old, std::int64_t capacity) const {
    const auto parts = static_cast<std::int64_t>(sequences_) * heads();
    Buffer buffer(new float[static_cast<std::size_t>(parts * capacity * width())]);
    const auto held = static_cast<std::size_t>(capacity_ * width());
    for (std::int64_t part = 0; held != 0 && part < parts; ++part) {
      std::memcpy(buffer.get() + part * capacity * width(), old + part * capacity_ * width(), held * sizeof(float));
    }
    return buffer;
  }

  void view(Rows rows) {
    if (!values_.empty() && rows.first == viewed_.first && rows.count == viewed_.count) return;
    values_.clear();
    const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(rows.count), heads(), capacity_, width()};
    const std::int64_t start = static_cast<std::int64_t>(rows.first) * heads() * capacity_ * width();
    for (const Buffer& buffer : buffers_) values_.push_back(tensor_over(model_.ort(), buffer.get() + start, shape));
    viewed_ = rows;
  }

  const Model& model_;
  std::size_t sequences_;
  std::int64_t limit_, capacity_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<Value> values_;  // tensors over `viewed_`
  Rows viewed_{0, 0};
};

// Every run returns the whole cache of its sequence, which the next one reads: one sequence a run.
class AppendedCache : public Cache {
 public:
  AppendedCache(const Model& model, std::size_t sequences, std::int64_t limit)
      : model_(model), limit_(limit), values_(sequences) {
    const std::vector<std::int64_t> empty = {1, model.manifest().kv_heads, 0, model.manifest().head_dim};
    for (auto& values : values_) {
      for (std::int64_t i = 0; i < model.cache_values(); ++i) {
        values.push_back(tensor_over(model.ort(), &nothing_, empty));
      }
    }
  }

  void reserve(std::int64_t tokens) override {
    const std::int64_t bytes = static_cast<std::int64_t>(values_.size()) * tokens * model_.cache_bytes_per_token();
    check_limit(bytes, limit_);
    bytes_ = std::max(bytes_, bytes);
  }

  std::vector<const OrtValue*> past(Rows rows) override {
    std::vector<const OrtValue*> found;
    for (const Value& value : values_[rows.first]) found.push_back(value.get());
    return found;
  }

  std::vector<OrtValue*> present(Rows) override {
    return std::vector<OrtValue*>(static_cast<std::size_t>(model_.cache_values()), nullptr);
  }

  void keep(Rows rows, const std::vector<OrtValue*>& returned) override {
    for (std::size_t i = 0; i < returned.size(); ++i) values_[rows.first][i].reset(returned[i]);
  }

  bool shares_runs() const override { return false; }
  std::int64_t bytes() const override { return bytes_; }

 private:
  const Model& model_;
  std::int64_t limit_, bytes_ = 0;
  float nothing_ = 0;  // an address for tensors without elements
  std::vector<std::vector<Value>> values_;
};

}  // namespace

std::unique_ptr<Cache> make_cache(const Model& model, std::size_t sequences, std::int64_t limit) {
  if (model.manifest().packed_cache) return std::make_unique<PackedCache>(model, sequences, limit);
  return std::make_unique<AppendedCache>(model, sequences, limit);
}

}  // namespace ultramem::runtime
