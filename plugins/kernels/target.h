// The block algorithms compile for the device by nvcc and for the host by any C++17 compiler: on the host they are
// tested, on the device they run.
#pragma once

#ifdef __CUDACC__
#define ULTRAMEM_BLOCK __device__ __forceinline__
#define ULTRAMEM_BOTH __host__ __device__ __forceinline__
#else
#define ULTRAMEM_BLOCK inline
#define ULTRAMEM_BOTH inline
#endif
