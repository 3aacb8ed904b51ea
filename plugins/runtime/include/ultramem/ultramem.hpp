// Running UltraMem bundles from C++17: a thin layer over ultramem.h that frees what it makes. Nothing here throws.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ultramem.h"

namespace ultramem {

using Ids = std::vector<std::int64_t>;

// A value or an error. `if (!result) use(result.error());` then `*result`.
class Error {
 public:
  explicit Error(UltramemError* raw) : raw_(raw, ultramem_error_free) {}
  UltramemCode code() const { return ultramem_error_code(raw_.get()); }
  std::string message() const { return ultramem_error_message(raw_.get()); }

 private:
  std::shared_ptr<UltramemError> raw_;
};

template <typename T>
class Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Error error) : error_(std::move(error)) {}
  explicit operator bool() const { return value_.has_value(); }
  T& operator*() { return *value_; }
  T* operator->() { return &*value_; }
  const Error& error() const { return *error_; }

 private:
  std::optional<T> value_;
  std::optional<Error> error_;
};

struct Done {};
using Status = Result<Done>;

inline Status status_of(UltramemError* raw) { return raw == nullptr ? Status(Done{}) : Status(Error(raw)); }

struct ModelOptions : UltramemModelOptions {
  ModelOptions() : UltramemModelOptions ULTRAMEM_MODEL_OPTIONS_INIT {}
};
struct SessionOptions : UltramemSessionOptions {
  SessionOptions() : UltramemSessionOptions ULTRAMEM_SESSION_OPTIONS_INIT {}
};

struct GenerateOptions : UltramemGenerateOptions {
  GenerateOptions() : UltramemGenerateOptions ULTRAMEM_GENERATE_OPTIONS_INIT {}
  // Called for each new token; false ends its sequence. Takes the place of on_token and user; must not throw.
  std::function<bool(std::size_t sequence, std::int64_t token)> callback;
};

struct Output {
  Ids ids;
  UltramemFinish finish = ULTRAMEM_FINISH_LENGTH;
};

// Ids to text, one at a time.
class Text {
 public:
  Result<std::string> push(std::int64_t id) {
    const char* piece = nullptr;
    if (UltramemError* error = ultramem_text_push(raw_.get(), id, &piece)) return Error(error);
    return std::string(piece);
  }

 private:
  friend class Model;
  explicit Text(UltramemText* raw) : raw_(raw, ultramem_text_free) {}
  std::unique_ptr<UltramemText, void (*)(UltramemText*)> raw_;
};

// The key-value caches of one or several sequences; one thread at a time, but for cancel.
class Session {
 public:
  Status prefill(const std::vector<Ids>& tokens) {
    const Batch batch(tokens);
    return status_of(ultramem_session_prefill(raw_.get(), batch.data.data(), batch.lengths.data(), tokens.size()));
  }

  Status decode(const Ids& tokens) { return status_of(ultramem_session_decode(raw_.get(), tokens.data())); }

  // Logits [vocab_size] after the sequence's last token, valid until the next call.
  Result<const float*> logits(std::size_t sequence) const {
    const float* found = nullptr;
    if (UltramemError* error = ultramem_session_logits(raw_.get(), sequence, &found)) return Error(error);
    return found;
  }

  Result<std::vector<Output>> generate(const std::vector<Ids>& prompts, const GenerateOptions& given) {
    GenerateOptions options = given;
    if (options.callback) {
      options.user = &options;
      options.on_token = [](void* user, std::size_t sequence, std::int64_t token) -> std::int32_t {
        return static_cast<GenerateOptions*>(user)->callback(sequence, token) ? 0 : 1;
      };
    }
    const Batch batch(prompts);
    if (UltramemError* error =
            ultramem_generate(raw_.get(), batch.data.data(), batch.lengths.data(), prompts.size(), &options)) {
      return Error(error);
    }
    std::vector<Output> outputs(prompts.size());
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::int64_t* ids = nullptr;
      std::size_t count = 0;
      if (UltramemError* error = ultramem_session_output(raw_.get(), i, &ids, &count, &outputs[i].finish)) {
        return Error(error);
      }
      outputs[i].ids.assign(ids, ids + count);
    }
    return outputs;
  }

  void reset() { ultramem_session_reset(raw_.get()); }
  void cancel() { ultramem_session_cancel(raw_.get()); }

  UltramemMetrics metrics() const {
    UltramemMetrics found{};
    found.struct_size = sizeof found;
    ultramem_error_free(ultramem_session_metrics(raw_.get(), &found));
    return found;
  }

 private:
  friend class Model;
  explicit Session(UltramemSession* raw) : raw_(raw, ultramem_session_close) {}

  struct Batch {
    explicit Batch(const std::vector<Ids>& tokens) {
      for (const Ids& ids : tokens) {
        data.push_back(ids.data());
        lengths.push_back(ids.size());
      }
    }
    std::vector<const std::int64_t*> data;
    std::vector<std::size_t> lengths;
  };

  std::unique_ptr<UltramemSession, void (*)(UltramemSession*)> raw_;
};

// A bundle, opened once and shared by threads; it must outlive its sessions and texts.
class Model {
 public:
  static Result<Model> open(const std::string& bundle, const ModelOptions& options = {}) {
    UltramemModel* raw = nullptr;
    if (UltramemError* error = ultramem_model_open(bundle.c_str(), &options, &raw)) return Error(error);
    return Model(raw);
  }

  Result<Session> session(const SessionOptions& options = {}) const {
    UltramemSession* raw = nullptr;
    if (UltramemError* error = ultramem_session_create(raw_.get(), &options, &raw)) return Error(error);
    return Session(raw);
  }

  Result<Text> text() const {
    UltramemText* raw = nullptr;
    if (UltramemError* error = ultramem_text_create(raw_.get(), &raw)) return Error(error);
    return Text(raw);
  }

  Result<Ids> encode(const std::string& text) const { return ids_of(ultramem_encode, text); }
  // The chat template on `messages`, a JSON array of {"role", "content"}.
  Result<Ids> encode_chat(const std::string& messages) const { return ids_of(ultramem_encode_chat, messages); }

  UltramemModelInfo info() const {
    UltramemModelInfo found{};
    found.struct_size = sizeof found;
    ultramem_error_free(ultramem_model_info(raw_.get(), &found));
    return found;
  }

 private:
  explicit Model(UltramemModel* raw) : raw_(raw, ultramem_model_close) {}

  template <typename Encode>
  Result<Ids> ids_of(Encode encode, const std::string& text) const {
    // A token is at least a byte of text, but for the few that a template adds: once more where that was not enough.
    Ids ids(text.size() + 64);
    for (std::size_t count = 0;; ids.resize(count)) {
      if (UltramemError* error = encode(raw_.get(), text.c_str(), ids.data(), ids.size(), &count)) return Error(error);
      if (count > ids.size()) continue;
      ids.resize(count);
      return ids;
    }
  }

  std::unique_ptr<UltramemModel, void (*)(UltramemModel*)> raw_;
};

}  // namespace ultramem
