// The operators' kernels on an NVIDIA GPU as plain C: the problems of ultramem_kernels.h with device pointers, and a
// stream.
//
// Every call only launches: it allocates nothing, waits for nothing and reads nothing back, so CUDA graphs can capture
// it. `type` is float32, float16 or bfloat16. A table may lie in device memory or in mapped host memory. Sums are in
// float32 and their order depends on sizes alone. An address outside its range cannot stop a launch: it makes that
// token's outputs NaN.
#ifndef ULTRAMEM_CUDA_H_
#define ULTRAMEM_CUDA_H_

#include "../ultramem_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st* UltramemStream;  // CUDA's cudaStream_t

typedef struct UltramemLaunch {
  UltramemCode code;  // what is wrong with the problem itself; nothing was launched then
  int cuda_error;     // a cudaError_t; 0 where the launch was taken
} UltramemLaunch;

// Threads that share one row of a SparseLookup: few spread a small batch over the device, many suit a large one.
// 0 lets the library choose; else 8, 16, 32, 64 or 128.
typedef int32_t UltramemLanes;

// Bytes of device memory (aligned to 16) that the call needs besides its tensors.
ULTRAMEM_PUBLIC size_t ultramem_cuda_tucker_topk_workspace(const UltramemTuckerTopK* problem);

ULTRAMEM_PUBLIC UltramemLaunch ultramem_cuda_tucker_topk(const UltramemTuckerTopK* problem, void* workspace,
                                                         UltramemStream stream);
ULTRAMEM_PUBLIC UltramemLaunch ultramem_cuda_sparse_gate(const UltramemSparseGate* problem, UltramemStream stream);
ULTRAMEM_PUBLIC UltramemLaunch ultramem_cuda_sparse_lookup(const UltramemSparseLookup* problem, UltramemLanes lanes,
                                                           UltramemStream stream);

#ifdef __cplusplus
}
#endif

#endif  // ULTRAMEM_CUDA_H_
