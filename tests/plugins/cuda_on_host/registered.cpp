// The adapters for the CUDA provider, registered for the CPU's: with kernels that run on the host, ONNX Runtime hands
// them its own memory and no stream.
#include "onnxruntime/cuda_operators.h"
#include "onnxruntime/operators.h"
#include "operators.h"

namespace ultramem::onnxruntime {

const std::vector<Registered>& registered() {
  static const char kCpu[] = "CPUExecutionProvider";
  static const std::vector<Registered> all = {{operators::kTuckerTopK, cuda::tucker_topk, kCpu},
                                              {operators::kSparseGate, cuda::sparse_gate, kCpu},
                                              {operators::kSparseLookup, cuda::sparse_lookup, kCpu}};
  return all;
}

}  // namespace ultramem::onnxruntime
