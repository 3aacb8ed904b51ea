// Memory of the GPU and a stream on it, given back by themselves.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "../runtime/failure.h"

namespace ultramem::engine {

// Throws Failure RUNTIME that says "`what`: CUDA: ...".
inline void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call is not told of it
  runtime::fail(ULTRAMEM_CODE_RUNTIME, what + ": CUDA: " + cudaGetErrorString(error));
}

struct Free {
  void operator()(void* memory) const { cudaFree(memory); }
};
using Buffer = std::unique_ptr<void, Free>;

// Never null: TensorRT wants an address for a tensor without elements too.
inline Buffer make_buffer(std::size_t bytes, const std::string& what) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes == 0 ? 1 : bytes), what + ": " + std::to_string(bytes) + " bytes of device memory");
  return Buffer(memory);
}

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace ultramem::engine
