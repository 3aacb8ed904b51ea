// Products of bfloat16, compiled for AVX-512 with BF16; the other kernels would gain nothing by it.
#include "isa.h"
#include "simd_avx512.h"
// The kernel below is written in terms of Simd.
#include "linear.h"

namespace ultramem {

void linear_avx512_bf16(const UltramemLinear& problem, UltramemRange columns) { linear_any(problem, columns); }

}  // namespace ultramem
