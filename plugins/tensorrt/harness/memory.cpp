#include "memory.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>

namespace ultramem::harness {
namespace {

class Host final : public Memory {
 public:
  void* place(const std::vector<std::byte>& bytes) override {
    kept_.push_back(bytes);
    return kept_.back().data();
  }
  std::vector<std::byte> read(const void* from, std::size_t count) override {
    std::vector<std::byte> bytes(count);
    std::memcpy(bytes.data(), from, count);
    return bytes;
  }

 private:
  std::deque<std::vector<std::byte>> kept_;
};

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

class Device final : public Memory {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() override {
    for (void* piece : kept_) cudaFree(piece);
  }
  void* place(const std::vector<std::byte>& bytes) override {
    void* piece = nullptr;
    check(cudaMalloc(&piece, bytes.empty() ? 1 : bytes.size()));
    kept_.push_back(piece);
    check(cudaMemcpy(piece, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    return piece;
  }
  std::vector<std::byte> read(const void* from, std::size_t count) override {
    std::vector<std::byte> bytes(count);
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(bytes.data(), from, count, cudaMemcpyDeviceToHost));
    return bytes;
  }

 private:
  std::vector<void*> kept_;
};

}  // namespace

std::unique_ptr<Memory> host_memory() { return std::make_unique<Host>(); }

std::unique_ptr<Memory> device_memory() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return nullptr;
  return std::make_unique<Device>();
}

}  // namespace ultramem::harness
