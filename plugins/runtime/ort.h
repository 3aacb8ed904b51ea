// ONNX Runtime, loaded at run time: handles that free themselves, statuses as Failure.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../onnxruntime/ort_session_abi.h"

namespace ultramem::runtime {

// A loaded ONNX Runtime. It lives as long as the process.
class Ort {
 public:
  // `path` may be "": the environment variable, then the loader's search. Throws Failure MISSING, or VERSION where it
  // is older than `required`.
  static const Ort& load(const std::string& path, const std::string& required);

  const OrtApi* api() const { return api_; }
  const OrtApiBase* base() const { return base_; }
  std::string version() const { return base_->GetVersionString(); }
  const OrtMemoryInfo* cpu() const { return cpu_; }
  OrtEnv* env() const { return env_; }

  // Throws Failure RUNTIME with ONNX Runtime's message where `status` is not success (null).
  void check(OrtStatus* status, const std::string& what) const;

 private:
  explicit Ort(const OrtApiBase* base);

  const OrtApiBase* base_;
  const OrtApi* api_;
  OrtEnv* env_ = nullptr;
  OrtMemoryInfo* cpu_ = nullptr;
};

template <typename T, typename Release>
struct Releaser {
  const OrtApi* api;
  void operator()(T* handle) const { Release::of(api)(handle); }
};

using Options = std::unique_ptr<OrtSessionOptions, Releaser<OrtSessionOptions, ort::ReleaseSessionOptions>>;
using Graph = std::unique_ptr<OrtSession, Releaser<OrtSession, ort::ReleaseSession>>;
using RunOptions = std::unique_ptr<OrtRunOptions, Releaser<OrtRunOptions, ort::ReleaseRunOptions>>;
using Value = std::unique_ptr<OrtValue, Releaser<OrtValue, ort::ReleaseValue>>;

Options make_options(const Ort& ort);
RunOptions make_run_options(const Ort& ort);
Graph make_graph(const Ort& ort, const std::string& path, const Options& options);

// A tensor over memory of the caller's, which must outlive it.
Value tensor_over(const Ort& ort, float* data, const std::vector<std::int64_t>& shape);
Value tensor_over(const Ort& ort, std::int64_t* data, const std::vector<std::int64_t>& shape);

}  // namespace ultramem::runtime
