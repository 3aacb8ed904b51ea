#include "cuda_operators.h"

#include <string>

#include "../kernels/cuda/ultramem_cuda.h"
#include "problems.h"

namespace ultramem::onnxruntime::cuda {
namespace {

// Throws where the kernel was not launched.
void require_launched(const Context& context, const UltramemLaunch& launch) {
  require(launch.code == ULTRAMEM_OK, context.op(),
          "the CUDA kernel refuses this problem, code " + std::to_string(launch.code) +
              ": it is larger than a launch can be");
  if (launch.cuda_error == 0) return;
  throw std::runtime_error(std::string(context.op().name) + ": the kernel was not launched: CUDA error " +
                           std::to_string(launch.cuda_error));
}

UltramemStream stream_of(const Context& context) { return static_cast<UltramemStream>(context.gpu_stream()); }

}  // namespace

void tucker_topk(const Context& context, const std::int64_t* attributes) {
  const UltramemTuckerTopK problem = topk_problem(context, attributes);
  require(ultramem_cuda_tucker_topk_workspace(&problem) == 0, context.op(),
          "k is " + std::to_string(problem.k) +
              ", and what is selected does not fit into shared memory: run this node "
              "on the CPU provider");
  require_launched(context, ultramem_cuda_tucker_topk(&problem, nullptr, stream_of(context)));
}

void sparse_gate(const Context& context, const std::int64_t* attributes) {
  const UltramemSparseGate problem = gate_problem(context, attributes);
  require_launched(context, ultramem_cuda_sparse_gate(&problem, stream_of(context)));
}

void sparse_lookup(const Context& context, const std::int64_t* attributes) {
  const UltramemSparseLookup problem = lookup_problem(context, attributes);
  require_launched(context, ultramem_cuda_sparse_lookup(&problem, 0, stream_of(context)));
}

}  // namespace ultramem::onnxruntime::cuda
