// The exported functions: arguments checked, exceptions turned into errors, nothing else.
#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "failure.h"
#include "model.h"
#include "session.h"

using namespace ultramem::runtime;

struct UltramemError {
  UltramemCode code;
  std::string message;
};
struct UltramemModel {
  Model model;
};
struct UltramemSession {
  Session session;
};
struct UltramemText {
  const Tokenizer& tokenizer;
  OrtxObject* state;
  std::string piece;
};

namespace {

// For when there is no memory even for an error.
UltramemError no_memory{ULTRAMEM_CODE_RUNTIME, "out of memory"};

UltramemError* error_of(UltramemCode code, const char* message) noexcept {
  try {
    return new UltramemError{code, message};
  } catch (...) {
    return &no_memory;
  }
}

template <typename Work>
UltramemError* guarded(Work work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return error_of(failure.code, failure.what());
  } catch (const std::bad_alloc&) {
    return error_of(ULTRAMEM_CODE_RUNTIME, "out of memory: use fewer or shorter sequences, or a memory limit");
  } catch (const std::exception& error) {
    return error_of(ULTRAMEM_CODE_RUNTIME, error.what());
  }
}

void require_given(const void* pointer, const char* name) {
  require(pointer != nullptr, ULTRAMEM_CODE_INVALID, std::string(name) + ": expected a pointer, found NULL");
}

// The caller's options over the defaults: a caller built with an older header has fewer of them.
template <typename Options>
Options options_of(const Options* given, const Options& defaults) {
  Options options = defaults;
  if (given != nullptr) {
    std::memcpy(&options, given, std::min(given->struct_size, sizeof options));
    options.struct_size = sizeof options;
  }
  return options;
}

// As many of our fields as the caller's struct has.
template <typename Info>
void give(Info found, Info* info) {
  const std::size_t size = std::min(info->struct_size, sizeof found);
  found.struct_size = size;
  std::memcpy(info, &found, size);
}

void give(const Ids& found, std::int64_t* ids, std::size_t capacity, std::size_t* count) {
  std::copy_n(found.begin(), std::min(capacity, found.size()), ids);
  *count = found.size();
}

std::vector<Tokens> tokens_of(const std::int64_t* const* tokens, const std::size_t* lengths, std::size_t sequences) {
  std::vector<Tokens> found;
  if (sequences == 0) return found;
  require_given(tokens, "tokens");
  require_given(lengths, "lengths");
  for (std::size_t i = 0; i < sequences; ++i) found.push_back({tokens[i], lengths[i]});
  return found;
}

}  // namespace

const char* ultramem_error_message(const UltramemError* error) {
  return error == nullptr ? "" : error->message.c_str();
}

UltramemCode ultramem_error_code(const UltramemError* error) { return error->code; }

void ultramem_error_free(UltramemError* error) {
  if (error != &no_memory) delete error;
}

const char* ultramem_runtime_version() { return ULTRAMEM_VERSION; }

UltramemError* ultramem_model_open(const char* bundle, const UltramemModelOptions* options, UltramemModel** model) {
  return guarded([&] {
    require_given(bundle, "bundle");
    require_given(model, "model");
    *model = nullptr;
    *model = new UltramemModel{Model(bundle, options_of(options, UltramemModelOptions ULTRAMEM_MODEL_OPTIONS_INIT))};
  });
}

void ultramem_model_close(UltramemModel* model) { delete model; }

UltramemError* ultramem_model_info(const UltramemModel* model, UltramemModelInfo* info) {
  return guarded([&] {
    require_given(model, "model");
    require_given(info, "info");
    const Model& of = model->model;
    const std::string& problem = of.tokenizer_problem();
    give(UltramemModelInfo{0, of.manifest().vocab_size, of.manifest().positions, of.cache_bytes_per_token(),
                           of.table_bytes(), of.table_bytes_per_token(), problem.empty() ? 1 : 0,
                           problem.empty() ? nullptr : problem.c_str(), of.onnxruntime_version().c_str()},
         info);
  });
}

UltramemError* ultramem_encode(const UltramemModel* model, const char* text, int64_t* ids, size_t capacity,
                               size_t* count) {
  return guarded([&] {
    require_given(model, "model");
    require_given(text, "text");
    require_given(count, "count");
    give(model->model.tokenizer().encode(text), ids, capacity, count);
  });
}

UltramemError* ultramem_encode_chat(const UltramemModel* model, const char* messages, int64_t* ids, size_t capacity,
                                    size_t* count) {
  return guarded([&] {
    require_given(model, "model");
    require_given(messages, "messages");
    require_given(count, "count");
    give(model->model.tokenizer().encode_chat(messages), ids, capacity, count);
  });
}

UltramemError* ultramem_text_create(const UltramemModel* model, UltramemText** text) {
  return guarded([&] {
    require_given(model, "model");
    require_given(text, "text");
    const Tokenizer& tokenizer = model->model.tokenizer();
    *text = new UltramemText{tokenizer, tokenizer.make_state(), {}};
  });
}

UltramemError* ultramem_text_push(UltramemText* text, int64_t id, const char** piece) {
  return guarded([&] {
    require_given(text, "text");
    require_given(piece, "piece");
    text->piece = text->tokenizer.push(text->state, id);
    *piece = text->piece.c_str();
  });
}

void ultramem_text_free(UltramemText* text) {
  if (text != nullptr) text->tokenizer.free_state(text->state);
  delete text;
}

UltramemError* ultramem_session_create(const UltramemModel* model, const UltramemSessionOptions* options,
                                       UltramemSession** session) {
  return guarded([&] {
    require_given(model, "model");
    require_given(session, "session");
    const auto chosen = options_of(options, UltramemSessionOptions ULTRAMEM_SESSION_OPTIONS_INIT);
    *session = new UltramemSession{Session(model->model, chosen)};
  });
}

void ultramem_session_close(UltramemSession* session) { delete session; }

void ultramem_session_reset(UltramemSession* session) {
  if (session != nullptr) session->session.reset();
}

UltramemError* ultramem_session_prefill(UltramemSession* session, const int64_t* const* tokens, const size_t* lengths,
                                        size_t sequences) {
  return guarded([&] {
    require_given(session, "session");
    session->session.prefill(tokens_of(tokens, lengths, sequences));
  });
}

UltramemError* ultramem_session_decode(UltramemSession* session, const int64_t* tokens) {
  return guarded([&] {
    require_given(session, "session");
    require_given(tokens, "tokens");
    session->session.decode(tokens);
  });
}

UltramemError* ultramem_session_logits(const UltramemSession* session, size_t sequence, const float** logits) {
  return guarded([&] {
    require_given(session, "session");
    require_given(logits, "logits");
    *logits = session->session.logits(sequence);
  });
}

void ultramem_session_cancel(UltramemSession* session) {
  if (session != nullptr) session->session.cancel();
}

UltramemError* ultramem_session_metrics(const UltramemSession* session, UltramemMetrics* metrics) {
  return guarded([&] {
    require_given(session, "session");
    require_given(metrics, "metrics");
    give(session->session.metrics(), metrics);
  });
}

UltramemError* ultramem_generate(UltramemSession* session, const int64_t* const* prompts, const size_t* lengths,
                                 size_t sequences, const UltramemGenerateOptions* options) {
  return guarded([&] {
    require_given(session, "session");
    const auto chosen = options_of(options, UltramemGenerateOptions ULTRAMEM_GENERATE_OPTIONS_INIT);
    session->session.generate(tokens_of(prompts, lengths, sequences), chosen);
  });
}

UltramemError* ultramem_session_output(const UltramemSession* session, size_t sequence, const int64_t** ids,
                                       size_t* count, UltramemFinish* finish) {
  return guarded([&] {
    require_given(session, "session");
    require_given(ids, "ids");
    require_given(count, "count");
    const Output& output = session->session.output(sequence);
    *ids = output.ids.data();
    *count = output.ids.size();
    if (finish != nullptr) *finish = output.finish;
  });
}
