#include "ort.h"

#include <map>
#include <mutex>

#include "failure.h"
#include "shared_library.h"
#include "version.h"

namespace ultramem::runtime {
namespace {

constexpr const char* kFix =
    "give the path of libonnxruntime.so in the options or in ULTRAMEM_ONNXRUNTIME (`pip install onnxruntime` holds one "
    "in onnxruntime/capi)";

SharedLibrary open_library(const std::string& path) {
  if (!path.empty()) return SharedLibrary::open("ONNX Runtime", {path}, kFix);
  if (const std::string named = environment("ULTRAMEM_ONNXRUNTIME"); !named.empty()) {
    return SharedLibrary::open("ONNX Runtime", {named}, kFix);
  }
  return SharedLibrary::open("ONNX Runtime", {"libonnxruntime.so.1", "libonnxruntime.so"}, kFix);
}

template <typename T>
Value tensor_of(const Ort& ort, T* data, const std::vector<std::int64_t>& shape, std::int32_t type) {
  std::size_t bytes = sizeof(T);
  for (const std::int64_t size : shape) bytes *= static_cast<std::size_t>(size);
  OrtValue* value = nullptr;
  ort.check(ort::CreateTensorWithDataAsOrtValue::of(ort.api())(ort.cpu(), data, bytes, shape.data(), shape.size(), type,
                                                               &value),
            "a tensor");
  return {value, {ort.api()}};
}

}  // namespace

const Ort& Ort::load(const std::string& path, const std::string& required) {
  static std::mutex mutex;
  static auto& loaded = *new std::map<const OrtApiBase*, std::unique_ptr<Ort>>;
  const SharedLibrary library = open_library(path);
  const OrtApiBase* base = library.function<const OrtApiBase*()>("OrtGetApiBase")();
  const std::string version = base->GetVersionString();
  require(at_least(version, required) && base->GetApi(ort::kApiVersion) != nullptr, ULTRAMEM_CODE_VERSION,
          library.name() + ": ONNX Runtime " + version + ", the bundle requires " + required +
              " or newer: upgrade it, or name another library in ULTRAMEM_ONNXRUNTIME");
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Ort>& found = loaded[base];
  if (found == nullptr) found.reset(new Ort(base));
  return *found;
}

Ort::Ort(const OrtApiBase* base) : base_(base), api_(base->GetApi(ort::kApiVersion)) {
  check(ort::CreateEnv::of(api_)(ort::kLogError, "ultramem", &env_), "the environment");
  check(ort::CreateCpuMemoryInfo::of(api_)(ort::kArena, ort::kDefaultMemory, &cpu_), "memory");
}

void Ort::check(OrtStatus* status, const std::string& what) const {
  if (status == nullptr) return;
  const std::string message = ort::GetErrorMessage::of(api_)(status);
  ort::ReleaseStatus::of(api_)(status);
  fail(ULTRAMEM_CODE_RUNTIME, what + ": ONNX Runtime " + version() + ": " + message.substr(0, message.find('\n')));
}

Options make_options(const Ort& ort) {
  OrtSessionOptions* options = nullptr;
  ort.check(ort::CreateSessionOptions::of(ort.api())(&options), "session options");
  return {options, {ort.api()}};
}

RunOptions make_run_options(const Ort& ort) {
  OrtRunOptions* options = nullptr;
  ort.check(ort::CreateRunOptions::of(ort.api())(&options), "run options");
  return {options, {ort.api()}};
}

Graph make_graph(const Ort& ort, const std::string& path, const Options& options) {
  OrtSession* session = nullptr;
  ort.check(ort::CreateSession::of(ort.api())(ort.env(), path.c_str(), options.get(), &session), path);
  return {session, {ort.api()}};
}

Value tensor_over(const Ort& ort, float* data, const std::vector<std::int64_t>& shape) {
  return tensor_of(ort, data, shape, ort::kFloat);
}

Value tensor_over(const Ort& ort, std::int64_t* data, const std::vector<std::int64_t>& shape) {
  return tensor_of(ort, data, shape, ort::kInt64);
}

}  // namespace ultramem::runtime
