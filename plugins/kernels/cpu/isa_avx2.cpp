// Every kernel, compiled for AVX2, FMA and F16C.
#include "isa.h"
#include "simd_avx2.h"
// The kernels below are written in terms of Simd.
#include "attention.h"
#include "linear.h"
#include "sparse_gate.h"
#include "sparse_lookup.h"
#include "tucker_topk.h"

namespace ultramem {

const Isa kAvx2Isa = {"avx2", sparse_lookup_any, sparse_gate_any, tucker_topk_any, attention_any, linear_any};

}  // namespace ultramem
