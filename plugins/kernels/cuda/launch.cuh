// What the launchers share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "ultramem_cuda.h"

namespace ultramem::cuda {

constexpr std::int64_t kMostBlocks = std::numeric_limits<std::int32_t>::max();  // of a grid's first dimension

inline UltramemLaunch refused(UltramemCode code) { return {code, 0}; }

inline UltramemLaunch launched() { return {ULTRAMEM_OK, static_cast<int>(cudaGetLastError())}; }

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace ultramem::cuda
