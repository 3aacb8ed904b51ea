// The calls of CUDA's runtime that our hosts make, over the memory of this machine, so that they run without a GPU.
// CUDA_ON_HOST_FREE is how many bytes the "device" says it has free, CUDA_ON_HOST_REGISTER=0 lets no file be pinned,
// CUDA_ON_HOST_DEVICES=0 is a machine without a GPU.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

struct Held {
  std::mutex mutex;
  std::map<const char*, std::size_t> ranges;  // allocated or registered: what a device may reach
};

Held& held() {
  static auto& one = *new Held;
  return one;
}

std::size_t number(const char* variable, std::size_t otherwise) {
  const char* value = std::getenv(variable);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

cudaError_t add(void* start, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(held().mutex);
  held().ranges[static_cast<char*>(start)] = bytes;
  return cudaSuccess;
}

cudaError_t remove(void* start) {
  const std::lock_guard<std::mutex> lock(held().mutex);
  return held().ranges.erase(static_cast<char*>(start)) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t allocate(void** pointer, std::size_t bytes) {
  *pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *pointer == nullptr ? cudaErrorMemoryAllocation : add(*pointer, bytes);
}

cudaError_t release(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  const cudaError_t error = remove(pointer);
  if (error == cudaSuccess) std::free(pointer);
  return error;
}

}  // namespace

extern "C" {

// For tests: ranges that nobody has given back.
__attribute__((visibility("default"))) std::size_t cuda_on_host_held() {
  const std::lock_guard<std::mutex> lock(held().mutex);
  return held().ranges.size();
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(number("CUDA_ON_HOST_DEVICES", 1));
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : attribute == cudaDevAttrComputeCapabilityMinor ? 9 : 0;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  *available = *total = number("CUDA_ON_HOST_FREE", std::size_t{8} << 30);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  if (bytes > number("CUDA_ON_HOST_FREE", std::size_t{8} << 30)) return cudaErrorMemoryAllocation;
  return allocate(pointer, bytes);
}

cudaError_t cudaFree(void* pointer) { return release(pointer); }

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) { return allocate(pointer, bytes); }

cudaError_t cudaFreeHost(void* pointer) { return release(pointer); }

cudaError_t cudaHostRegister(void* start, std::size_t bytes, unsigned flags) {
  if ((flags & cudaHostRegisterReadOnly) == 0) return cudaErrorInvalidValue;  // a mapped file cannot be written to
  return number("CUDA_ON_HOST_REGISTER", 1) == 0 ? cudaErrorNotSupported : add(start, bytes);
}

cudaError_t cudaHostUnregister(void* start) { return remove(start); }

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  const std::lock_guard<std::mutex> lock(held().mutex);
  *device = host;
  return held().ranges.count(static_cast<char*>(host)) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaMemcpy(void* target, const void* source, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(target, source, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(target, source, bytes, kind);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    default:
      return "another error";
  }
}

}  // extern "C"
