// The seam between instruction sets: each one is a translation unit, compiled with its own flags, that defines one Isa.
// A new one (NEON, say) adds a simd_*.h, an isa_*.cpp, and a line in dispatch.cpp and CMakeLists.txt.
#pragma once

#include "../ultramem_kernels.h"

namespace ultramem {

struct Isa {
  const char* name;
  UltramemStatus (*sparse_lookup)(const UltramemSparseLookup&, UltramemRange tokens, UltramemRange columns,
                                  void* scratch);
  UltramemStatus (*sparse_gate)(const UltramemSparseGate&, UltramemRange pairs, void* scratch);
  UltramemStatus (*tucker_topk)(const UltramemTuckerTopK&, UltramemRange items, void* scratch);
  UltramemStatus (*attention)(const UltramemAttention&, UltramemRange items, void* scratch);
  void (*linear)(const UltramemLinear&, UltramemRange columns);
};

extern const Isa kPlainIsa;
extern const Isa kAvx2Isa;
extern const Isa kAvx512Isa;
extern const Isa kAvx512Bf16Isa;  // the same, but for the one kernel that gains by its products of bfloat16

void linear_avx512_bf16(const UltramemLinear&, UltramemRange columns);

}  // namespace ultramem
