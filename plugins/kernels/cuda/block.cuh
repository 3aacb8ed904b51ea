// A block of threads of the device, or a named half of one, as selection.h wants it.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace ultramem::cuda {

class DeviceBlock {
 public:
  // All threads of the block that runs.
  ULTRAMEM_BLOCK DeviceBlock() : DeviceBlock(threadIdx.x, blockDim.x, 0) {}

  template <typename F>
  ULTRAMEM_BLOCK void each(std::uint32_t count, const F& f) const {
#pragma unroll 4
    for (std::uint32_t i = thread_; i < count; i += threads_) f(i);
    wait();
  }

  template <typename F>
  ULTRAMEM_BLOCK void once(const F& f) const {
    if (thread_ == 0) f();
    wait();
  }

  template <typename F, typename G>
  ULTRAMEM_BLOCK void split(const F& f, const G& g) const {
    const std::uint32_t half = threads_ / 2;
    if (thread_ < half) {
      f(DeviceBlock(thread_, half, 1));
    } else {
      g(DeviceBlock(thread_ - half, half, 2));
    }
    wait();
  }

  ULTRAMEM_BLOCK static std::uint32_t add(std::uint32_t* at, std::uint32_t value) { return atomicAdd(at, value); }

 private:
  ULTRAMEM_BLOCK DeviceBlock(std::uint32_t thread, std::uint32_t threads, int barrier)
      : thread_(thread), threads_(threads), barrier_(barrier) {}

  // Barrier 0 is __syncthreads' own; the halves wait at 1 and 2 without each other.
  ULTRAMEM_BLOCK void wait() const { wait_at(barrier_, threads_); }

  std::uint32_t thread_;
  std::uint32_t threads_;
  int barrier_;
};

}  // namespace ultramem::cuda
