// How many bytes numbers take in a table.
#pragma once

#include <cstdint>

#include "../ultramem_kernels.h"

namespace ultramem {
namespace {

inline std::int64_t bytes_of(UltramemType type, std::int64_t numbers) {
  switch (type) {
    case ULTRAMEM_FLOAT32:
      return 4 * numbers;
    case ULTRAMEM_FLOAT16:
    case ULTRAMEM_BFLOAT16:
      return 2 * numbers;
    case ULTRAMEM_INT4:
      return numbers / 2;
    case ULTRAMEM_INT8:
    case ULTRAMEM_FLOAT8_E4M3:
      break;
  }
  return numbers;
}

}  // namespace
}  // namespace ultramem
