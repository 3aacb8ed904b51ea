// Launches TuckerTopK: one block of threads for each head of each token.
#include "block.cuh"
#include "launch.cuh"
#include "problems.h"
#include "tucker_topk.h"

namespace ultramem::cuda {
namespace {

constexpr std::size_t kMostShared = 48 << 10;  // what every device grants without being asked

// How the memory of a block is provided.
struct Plan {
  bool cache_ranks;      // stage 1's weighted scores are kept in shared memory
  bool shared;           // the scratch fits there; else each block has its own piece of the workspace
  std::size_t bytes;     // of one block's scratch
  std::int64_t threads;  // a multiple of 64: each half is whole warps
};

Plan plan_of(const UltramemTuckerTopK& p) {
  const std::size_t cached = TuckerTopKScratch(p, true, nullptr).bytes;
  const std::size_t bare = TuckerTopKScratch(p, false, nullptr).bytes;
  const bool cache = cached <= kMostShared;
  const std::int64_t keys = p.n_row > p.n_col ? p.n_row : p.n_col;
  return {cache, bare <= kMostShared, cache ? cached : bare, keys <= 512 ? 128 : keys <= 1024 ? 256 : 512};
}

template <typename T>
__global__ void __launch_bounds__(512) tucker_topk_kernel(UltramemTuckerTopK p, Plan plan, void* workspace) {
  extern __shared__ __align__(16) char shared[];
  const std::int64_t item = blockIdx.x;
  void* scratch = plan.shared ? shared : static_cast<char*>(workspace) + item * static_cast<std::int64_t>(plan.bytes);
  tucker_topk_item<T>(DeviceBlock(), p, item, TuckerTopKScratch(p, plan.cache_ranks, scratch));
}

}  // namespace
}  // namespace ultramem::cuda

using namespace ultramem::cuda;

extern "C" size_t ultramem_cuda_tucker_topk_workspace(const UltramemTuckerTopK* problem) {
  const Plan plan = plan_of(*problem);
  return plan.shared ? 0 : plan.bytes * static_cast<std::size_t>(problem->tokens * problem->heads);
}

extern "C" UltramemLaunch ultramem_cuda_tucker_topk(const UltramemTuckerTopK* problem, void* workspace,
                                                    UltramemStream stream) {
  const UltramemTuckerTopK& p = *problem;
  if (!is_activation_type(p.type)) return refused(ULTRAMEM_UNSUPPORTED_TYPE);
  const std::int64_t items = p.tokens * p.heads;
  if (!is_sound(p) || items > kMostBlocks) return refused(ULTRAMEM_BAD_SHAPE);
  if (items == 0) return {ULTRAMEM_OK, 0};
  const Plan plan = plan_of(p);
  const auto grid = static_cast<unsigned>(items), threads = static_cast<unsigned>(plan.threads);
  const std::size_t shared = plan.shared ? plan.bytes : 0;
  if (p.type == ULTRAMEM_FLOAT32) {
    tucker_topk_kernel<float><<<grid, threads, shared, stream>>>(p, plan, workspace);
  } else if (p.type == ULTRAMEM_FLOAT16) {
    tucker_topk_kernel<Half><<<grid, threads, shared, stream>>>(p, plan, workspace);
  } else {
    tucker_topk_kernel<BFloat16><<<grid, threads, shared, stream>>>(p, plan, workspace);
  }
  return launched();
}
