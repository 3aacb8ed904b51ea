// Arrays whose element type only the host knew: a branch that every thread takes alike.
#pragma once

#include <cstdint>

#include "../number.h"
#include "../ultramem_kernels.h"

namespace ultramem::cuda {

ULTRAMEM_BLOCK float read(const void* data, UltramemType type, std::int64_t at) {
  if (type == ULTRAMEM_FLOAT32) return static_cast<const float*>(data)[at];
  if (type == ULTRAMEM_FLOAT16) return to_float(static_cast<const Half*>(data)[at]);
  return to_float(static_cast<const BFloat16*>(data)[at]);
}

ULTRAMEM_BLOCK void write(void* data, UltramemType type, std::int64_t at, float value) {
  if (type == ULTRAMEM_FLOAT32) {
    from_float(value, static_cast<float*>(data) + at);
  } else if (type == ULTRAMEM_FLOAT16) {
    from_float(value, static_cast<Half*>(data) + at);
  } else {
    from_float(value, static_cast<BFloat16*>(data) + at);
  }
}

}  // namespace ultramem::cuda
