// What running a TensorRT engine takes, as the sequences see it: shapes and addresses in, one run at a time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../runtime/manifest.h"

namespace ultramem::engine {

// The engine's optimisation profiles, in its order.
enum Profile { kPrefill, kDecode };

class Engine {
 public:
  virtual ~Engine() = default;
  // Throws Failure where the shape is outside what the engine was built for.
  virtual void set_shape(Profile profile, const std::string& input, const std::vector<std::int64_t>& shape) = 0;
  virtual void bind(Profile profile, const std::string& name, void* address) = 0;
  // Throws Failure RUNTIME with TensorRT's own message.
  virtual void run(Profile profile, cudaStream_t stream) = 0;
};

// The engine of the bundle in `directory` in the TensorRT that it asks for, loaded at run time. Throws Failure: MISSING
// without a GPU or TensorRT, VERSION where one is another than the engine needs, RUNTIME with TensorRT's own message.
std::unique_ptr<Engine> load_engine(const std::string& directory, const runtime::Manifest& manifest);

}  // namespace ultramem::engine
