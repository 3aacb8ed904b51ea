// A stand-in for ONNX Runtime: just the functions that the library calls, and a "model" whose next token is
// (last token + length) mod vocabulary. STUB_ORT_VERSION makes it say another version.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "onnxruntime/ort_session_abi.h"

struct OrtStatus {
  std::string message;
};
struct OrtValue {
  void* data;
  std::vector<std::int64_t> shape;
};
struct OrtRunOptions {
  std::atomic<bool> terminate{false};
};

namespace {

template <typename T>
OrtStatus* make(T** out) {
  *out = reinterpret_cast<T*>(new char);
  return nullptr;
}
template <typename T>
void release(T* handle) {
  delete reinterpret_cast<char*>(handle);
}

const char* message_of(const OrtStatus* status) { return status->message.c_str(); }
void release_status(OrtStatus* status) { delete status; }
OrtStatus* make_env(std::int32_t, const char*, OrtEnv** env) { return make(env); }
OrtStatus* make_memory(std::int32_t, std::int32_t, OrtMemoryInfo** info) { return make(info); }
OrtStatus* make_options(OrtSessionOptions** options) { return make(options); }
OrtStatus* set_threads(OrtSessionOptions*, int) { return nullptr; }
OrtStatus* set_entry(OrtSessionOptions*, const char*, const char*) { return nullptr; }
OrtStatus* make_session(const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession** session) {
  return make(session);
}
OrtStatus* make_run_options(OrtRunOptions** options) {
  *options = new OrtRunOptions;
  return nullptr;
}
void release_run_options(OrtRunOptions* options) { delete options; }
OrtStatus* terminate(OrtRunOptions* options) {
  options->terminate = true;
  return nullptr;
}
OrtStatus* go_on(OrtRunOptions* options) {
  options->terminate = false;
  return nullptr;
}
OrtStatus* make_tensor(const OrtMemoryInfo*, void* data, std::size_t, const std::int64_t* shape, std::size_t rank,
                       std::int32_t, OrtValue** value) {
  *value = new OrtValue{data, {shape, shape + rank}};
  return nullptr;
}
void release_value(OrtValue* value) { delete value; }

OrtStatus* run(OrtSession*, const OrtRunOptions* options, const char* const*, const OrtValue* const* inputs,
               std::size_t, const char* const*, std::size_t, OrtValue** outputs) {
  if (options->terminate) return new OrtStatus{"terminated"};
  const OrtValue &ids = *inputs[0], &mask = *inputs[1], &logits = *outputs[0];
  const std::int64_t rows = ids.shape[0], length = ids.shape[1], total = mask.shape[1], vocabulary = logits.shape[2];
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t held = 0;
    for (std::int64_t i = 0; i < total; ++i) held += static_cast<const std::int64_t*>(mask.data)[row * total + i];
    for (std::int64_t at = 0; at < length; ++at) {
      const std::int64_t token = static_cast<const std::int64_t*>(ids.data)[row * length + at];
      auto* out = static_cast<float*>(logits.data) + (row * length + at) * vocabulary;
      std::memset(out, 0, static_cast<std::size_t>(vocabulary) * sizeof(float));
      out[(token + held - length + at + 1) % vocabulary] = 1;
    }
  }
  return nullptr;
}

using Slot = void (*)();

struct Slots {
  Slot slots[300] = {};

  template <typename Function>
  void set(int slot, Function* function) {
    slots[slot] = reinterpret_cast<Slot>(function);
  }

  Slots() {
    set(2, message_of), set(3, make_env), set(7, make_session), set(9, run), set(10, make_options);
    set(24, set_threads), set(39, make_run_options), set(46, terminate), set(47, go_on), set(49, make_tensor);
    set(69, make_memory), set(93, release_status), set(95, release<OrtSession>), set(96, release_value);
    set(97, release_run_options), set(100, release<OrtSessionOptions>), set(130, set_entry);
  }
};

const OrtApi* get_api(std::uint32_t) {
  static const Slots slots;
  return reinterpret_cast<const OrtApi*>(&slots);
}

const char* get_version() {
  const char* version = std::getenv("STUB_ORT_VERSION");
  return version == nullptr ? "1.99.0" : version;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* OrtGetApiBase() {
  static const OrtApiBase base{get_api, get_version};
  return &base;
}
