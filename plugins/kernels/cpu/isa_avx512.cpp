// Every kernel, compiled for AVX-512 F, BW, VL and DQ.
#include "isa.h"
#include "simd_avx512.h"
// The kernels below are written in terms of Simd.
#include "attention.h"
#include "linear.h"
#include "sparse_gate.h"
#include "sparse_lookup.h"
#include "tucker_topk.h"

namespace ultramem {

const Isa kAvx512Isa = {"avx512", sparse_lookup_any, sparse_gate_any, tucker_topk_any, attention_any, linear_any};

const Isa kAvx512Bf16Isa = {"avx512_bf16",   sparse_lookup_any, sparse_gate_any,
                            tucker_topk_any, attention_any,     linear_avx512_bf16};

}  // namespace ultramem
