// What the kernels and their launchers take from CUDA.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "cuda_on_host.h"  // of the tests, which run the same sources on the threads of a CPU
#endif

#include <cstdint>
#include <limits>

#include "../target.h"
#include "ultramem_cuda.h"

namespace ultramem::cuda {

constexpr std::int64_t kMostBlocks = std::numeric_limits<std::int32_t>::max();  // of a grid's first dimension

inline UltramemLaunch refused(UltramemCode code) { return {code, 0}; }

inline bool is_activation_type(UltramemType type) {
  return type == ULTRAMEM_FLOAT32 || type == ULTRAMEM_FLOAT16 || type == ULTRAMEM_BFLOAT16;
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

#ifdef __CUDACC__
// Launches `blocks` blocks of `threads`, with `shared` bytes of shared memory each.
template <typename... Parameters>
UltramemLaunch launch_kernel(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared,
                             UltramemStream stream, Parameters... parameters) {
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared, stream>>>(parameters...);
  return {ULTRAMEM_OK, static_cast<int>(cudaGetLastError())};
}

// The block's shared memory of the size that the launch gave.
ULTRAMEM_BLOCK char* shared_memory() {
  extern __shared__ __align__(16) char bytes[];
  return bytes;
}

// Waits for `threads` threads, whole warps, at one of the block's sixteen barriers.
ULTRAMEM_BLOCK void wait_at(int barrier, std::uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
#endif

}  // namespace ultramem::cuda
