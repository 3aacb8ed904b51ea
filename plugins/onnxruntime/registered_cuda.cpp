// libultramem_ort_cuda: the CUDA provider, and the CPU provider for what is placed there.
#include "../operators.h"
#include "cuda_operators.h"
#include "operators.h"

namespace ultramem::onnxruntime {

const std::vector<Registered>& registered() {
  static const char kCpu[] = "CPUExecutionProvider", kCuda[] = "CUDAExecutionProvider";
  static const std::vector<Registered> all = {{operators::kTuckerTopK, cuda::tucker_topk, kCuda},
                                              {operators::kSparseGate, cuda::sparse_gate, kCuda},
                                              {operators::kSparseLookup, cuda::sparse_lookup, kCuda},
                                              {operators::kTuckerTopK, tucker_topk, kCpu},
                                              {operators::kSparseGate, sparse_gate, kCpu},
                                              {operators::kSparseLookup, sparse_lookup, kCpu}};
  return all;
}

}  // namespace ultramem::onnxruntime
