// Launches TuckerTopK: one block of threads for each head of each token.
#include "../problems.h"
#include "block.cuh"
#include "launch.cuh"
#include "tucker_topk.h"

namespace ultramem::cuda {
namespace {

constexpr std::int64_t kMostShared = 48 << 10;  // what every device grants without being asked

// How the memory of a block is provided.
struct Plan {
  bool cache_ranks;    // stage 1's weighted scores are kept in shared memory
  bool shared;         // the scratch fits there; else each block has its own piece of the workspace
  std::int64_t bytes;  // of one block's scratch
  int threads;         // a multiple of 64: each half is whole warps
};

Plan plan_of(const UltramemTuckerTopK& p) {
  const std::int64_t cached = TuckerTopKScratch(p, true, nullptr).bytes;
  const std::int64_t bare = TuckerTopKScratch(p, false, nullptr).bytes;
  const bool cache = cached <= kMostShared;
  const std::int64_t keys = p.n_row > p.n_col ? p.n_row : p.n_col;
  return {cache, bare <= kMostShared, cache ? cached : bare, keys <= 512 ? 128 : keys <= 1024 ? 256 : 512};
}

template <typename T>
__global__ void __launch_bounds__(512) tucker_topk_kernel(UltramemTuckerTopK p, Plan plan, void* workspace) {
  const std::int64_t item = blockIdx.x;
  void* scratch = plan.shared ? shared_memory() : static_cast<char*>(workspace) + item * plan.bytes;
  tucker_topk_item<T>(DeviceBlock(), p, item, TuckerTopKScratch(p, plan.cache_ranks, scratch));
}

template <typename T>
UltramemLaunch launch(const UltramemTuckerTopK& p, void* workspace, UltramemStream stream) {
  const Plan plan = plan_of(p);
  const auto shared = static_cast<std::size_t>(plan.shared ? plan.bytes : 0);
  return launch_kernel(tucker_topk_kernel<T>, p.tokens * p.heads, plan.threads, shared, stream, p, plan, workspace);
}

}  // namespace
}  // namespace ultramem::cuda

using namespace ultramem;
using namespace ultramem::cuda;

extern "C" size_t ultramem_cuda_tucker_topk_workspace(const UltramemTuckerTopK* problem) {
  const Plan plan = plan_of(*problem);
  return plan.shared ? 0 : static_cast<std::size_t>(plan.bytes * problem->tokens * problem->heads);
}

extern "C" UltramemLaunch ultramem_cuda_tucker_topk(const UltramemTuckerTopK* problem, void* workspace,
                                                    UltramemStream stream) {
  const UltramemTuckerTopK& p = *problem;
  if (!is_activation_type(p.type)) return refused(ULTRAMEM_UNSUPPORTED_TYPE);
  const std::int64_t items = p.tokens * p.heads;
  if (!is_sound(p) || items > kMostBlocks) return refused(ULTRAMEM_BAD_SHAPE);
  if (items == 0) return {ULTRAMEM_OK, 0};
  if (p.type == ULTRAMEM_FLOAT32) return launch<float>(p, workspace, stream);
  return p.type == ULTRAMEM_FLOAT16 ? launch<Half>(p, workspace, stream) : launch<BFloat16>(p, workspace, stream);
}
