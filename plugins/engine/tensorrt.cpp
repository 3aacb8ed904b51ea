// An Engine by TensorRT itself, of the major version whose headers this was compiled with, loaded at run time.
#include <NvInferRuntime.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <vector>

#include "../runtime/failure.h"
#include "../runtime/plugin.h"
#include "../runtime/shared_library.h"
#include "../runtime/version.h"
#include "device.h"
#include "engine.h"

namespace ultramem::engine {
namespace {

using runtime::require;
using runtime::SharedLibrary;

#ifdef TRT_MAJOR_RTX
constexpr const char* kBackend = "tensorrt-rtx";
constexpr const char* kLibrary = "libtensorrt_rtx.so.";
#else
constexpr const char* kBackend = "tensorrt";
constexpr const char* kLibrary = "libnvinfer.so.";
#endif
constexpr const char* kVariable = "ULTRAMEM_TENSORRT";

// Keeps the first error for our own message; the rest of what TensorRT says is dropped.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity > Severity::kERROR || !first_.empty()) return;
    try {
      first_ = text;
    } catch (...) {
      return;  // no memory for a message: there is none then
    }
  }
  std::string why() const { return first_.empty() ? "" : ": " + first_.substr(0, first_.find('\n')); }

 private:
  std::string first_;
};

SharedLibrary open_tensorrt() {
  const std::string named = runtime::environment(kVariable);
  const std::string usual = kLibrary + std::to_string(NV_TENSORRT_MAJOR);
  return SharedLibrary::open("TensorRT", {named.empty() ? usual : named},
                             "install " + std::string(kBackend) + ", or name its library in " + kVariable);
}

// "10.14.1.48"
std::string version_of(const SharedLibrary& library) {
  std::string text;
  for (const char* part : {"Major", "Minor", "Patch", "Build"}) {
    const std::string name = std::string("getInferLib") + part + "Version";
    text += (text.empty() ? "" : ".") + std::to_string(library.function<std::int32_t()>(name.c_str())());
  }
  return text;
}

void check_library(const SharedLibrary& library, const runtime::EngineInfo& info) {
  require(info.backend == kBackend, ULTRAMEM_CODE_VERSION,
          "the engine is for " + info.backend + ", this program was compiled for " + kBackend +
              ": compile it with the headers of " + info.backend + " (-DULTRAMEM_TENSORRT_INCLUDE)");
  const std::string version = version_of(library);
  const std::string compiled = std::to_string(NV_TENSORRT_MAJOR);
  require(version.compare(0, compiled.size() + 1, compiled + ".") == 0, ULTRAMEM_CODE_VERSION,
          library.name() + ": TensorRT " + version + ", this program was compiled for " + compiled +
              ": compile it with that release's headers (-DULTRAMEM_TENSORRT_INCLUDE), or name another in " +
              kVariable);
  const bool good = info.version_compatible ? runtime::at_least(version, info.version) : version == info.version;
  require(good, ULTRAMEM_CODE_VERSION,
          library.name() + ": TensorRT " + version + ", the engine was built by " + info.version +
              ": install that, or build the engine again");
}

void check_gpu(const runtime::EngineInfo& info) {
  int count = 0, major = 0, minor = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  require(error == cudaSuccess && count > 0, ULTRAMEM_CODE_MISSING,
          std::string("no NVIDIA GPU or driver on this machine, which an engine needs (") +
              (error == cudaSuccess ? "no device" : cudaGetErrorString(error)) +
              "); run it where `nvidia-smi` lists a GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "the GPU");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "the GPU");
  const std::string found = std::to_string(major) + "." + std::to_string(minor);
  bool good = info.capabilities.empty();
  for (const std::string& known : info.capabilities) good = good || known == found;
  require(good && runtime::at_least(found, info.least_capability), ULTRAMEM_CODE_VERSION,
          "this GPU has compute capability " + found + ", for which the engine was not built: build it here");
}

std::vector<char> read(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> bytes(static_cast<std::size_t>(std::filesystem::file_size(path)));
  require(stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size())).good(), ULTRAMEM_CODE_DAMAGED,
          path + ": cannot be read; copy the whole bundle");
  return bytes;
}

class TensorRtEngine final : public Engine {
 public:
  TensorRtEngine(const std::string& directory, const runtime::Manifest& manifest) {
    const runtime::EngineInfo& info = *manifest.engine;
    check_gpu(info);
    const SharedLibrary library = open_tensorrt();
    check_library(library, info);
    auto* create = library.function<void*(void*, std::int32_t)>("createInferRuntime_INTERNAL");
    runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&logger_, NV_TENSORRT_VERSION)));
    expect(runtime_ != nullptr, "TensorRT cannot start");
    runtime_->setEngineHostCodeAllowed(info.version_compatible);
    if (manifest.uses_operators && !info.embeds_plugin) load_plugin(directory, manifest);
    const std::vector<char> bytes = read(directory + "/" + manifest.graph);
    engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
    expect(engine_ != nullptr, directory + "/" + manifest.graph + ": TensorRT cannot load it");
    if (info.weight_streaming) {
      engine_->setWeightStreamingBudgetV2(engine_->getWeightStreamingAutomaticBudget());
    }
    for (const Profile profile : {kPrefill, kDecode}) contexts_[profile] = make_context(profile);
  }

  void set_shape(Profile profile, const std::string& input, const std::vector<std::int64_t>& shape) override {
    nvinfer1::Dims dims{};
    for (const std::int64_t size : shape) dims.d[dims.nbDims++] = size;
    expect(contexts_[profile]->setInputShape(input.c_str(), dims),
           input + ": a shape outside what the engine was built for; build it with other --shapes");
  }

  void bind(Profile profile, const std::string& name, void* address) override {
    expect(contexts_[profile]->setTensorAddress(name.c_str(), address), name + ": the engine has no such tensor");
  }

  void run(Profile profile, cudaStream_t stream) override {
    expect(contexts_[profile]->enqueueV3(stream), "the engine: a step could not run");
  }

 private:
  using Context = std::unique_ptr<nvinfer1::IExecutionContext>;

  void expect(bool good, const std::string& what) const { require(good, ULTRAMEM_CODE_RUNTIME, what + logger_.why()); }

  void load_plugin(const std::string& directory, const runtime::Manifest& manifest) {
    const std::string named = runtime::environment("ULTRAMEM_TENSORRT_LIBRARY");
    const SharedLibrary library =
        runtime::open_operators("tensorrt", "libultramem_tensorrt.so", directory, manifest, named);
    expect(runtime_->getPluginRegistry().loadLibrary(library.name().c_str()) != nullptr,
           library.name() + ": TensorRT cannot load it");
    library.function<void(const char*)>("ultramem_add_tables")(directory.c_str());
  }

  Context make_context(Profile profile) {
    Context context(engine_->createExecutionContext());
    expect(context != nullptr, "the engine: no execution context (its activations need device memory)");
    const Stream stream;
    expect(context->setOptimizationProfileAsync(profile, stream.get()), "the engine: it lacks a profile");
    check(cudaStreamSynchronize(stream.get()), "the engine's profile");
    return context;
  }

  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::array<Context, 2> contexts_;
};

}  // namespace

std::unique_ptr<Engine> load_engine(const std::string& directory, const runtime::Manifest& manifest) {
  return std::make_unique<TensorRtEngine>(directory, manifest);
}

}  // namespace ultramem::engine
