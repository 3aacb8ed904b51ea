// The CUDA kernels under ThreadSanitizer: a barrier that is missing between two threads of a block is a data race here.
// Prints nothing and exits 0 where there is none; numbers are checked elsewhere.
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/ultramem_cuda.h"

namespace {

std::mt19937 generator(11);

std::vector<float> normal(std::int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = distribution(generator);
  return values;
}

std::vector<std::int64_t> addresses(std::int64_t count, std::int64_t limit) {
  std::uniform_int_distribution<std::int64_t> distribution(0, limit - 1);
  std::vector<std::int64_t> values(static_cast<std::size_t>(count));
  for (std::int64_t& value : values) value = distribution(generator);
  return values;
}

// 300 slots take three stretches of the kernel's 128.
bool lookup(std::int64_t width, std::int32_t lanes) {
  const std::int64_t rows = 20, tokens = 1, slots = 300, cores = 2, blocks = 2;
  const auto table = normal(rows * width), scores = normal(tokens * slots * cores);
  const auto address = addresses(tokens * slots, rows * blocks);
  std::vector<float> output(static_cast<std::size_t>(tokens * blocks * width));
  const UltramemSparseLookup problem{{table.data(), ULTRAMEM_FLOAT32, rows, width, width, nullptr},
                                     address.data(),
                                     scores.data(),
                                     output.data(),
                                     ULTRAMEM_FLOAT32,
                                     tokens,
                                     slots,
                                     cores,
                                     blocks};
  return ultramem_cuda_sparse_lookup(&problem, lanes, nullptr).code == ULTRAMEM_OK;
}

// x of 2100 numbers takes two stretches of the kernel's 2048, and swiglu goes over it twice.
bool gate() {
  const std::int64_t rows = 6, width = 2100, tokens = 1, slots = 20;
  const auto table = normal(rows * 2 * width), x = normal(tokens * width);
  const auto address = addresses(tokens * slots, rows);
  std::vector<float> gates(static_cast<std::size_t>(tokens * slots));
  const UltramemSparseGate problem{{table.data(), ULTRAMEM_FLOAT32, rows, 2 * width, 2 * width, nullptr},
                                   address.data(),
                                   x.data(),
                                   gates.data(),
                                   ULTRAMEM_FLOAT32,
                                   tokens,
                                   slots,
                                   width,
                                   ULTRAMEM_SWIGLU};
  return ultramem_cuda_sparse_gate(&problem, nullptr).code == ULTRAMEM_OK;
}

// Keys of two values alone tie, so that selection goes down to the positions' bits.
bool retrieval(std::int64_t keys, std::int64_t k, bool ties) {
  const std::int64_t tokens = 1, heads = 1, rank = 2, cores = 2;
  auto row = normal(rank * keys), col = normal(rank * keys);
  const auto u = normal(rank), v = normal(rank), core = normal(cores * rank * rank);
  if (ties) {
    for (float& score : row) score = score > 0 ? 1.0f : -1.0f;
  }
  std::vector<float> scores(static_cast<std::size_t>(k * cores));
  std::vector<std::int64_t> indices(static_cast<std::size_t>(k));
  const UltramemTuckerTopK problem{row.data(),
                                   col.data(),
                                   u.data(),
                                   v.data(),
                                   core.data(),
                                   scores.data(),
                                   indices.data(),
                                   ULTRAMEM_FLOAT32,
                                   tokens,
                                   heads,
                                   rank,
                                   keys,
                                   keys,
                                   cores,
                                   k};
  std::vector<char> workspace(ultramem_cuda_tucker_topk_workspace(&problem) + 16);
  const auto at = reinterpret_cast<std::uintptr_t>(workspace.data());
  return ultramem_cuda_tucker_topk(&problem, workspace.data() + (16 - at % 16) % 16, nullptr).code == ULTRAMEM_OK;
}

}  // namespace

int main() {
  const bool ran = lookup(24, 0) && lookup(25 * 2, 16) && lookup(200, 32) && gate() && retrieval(40, 9, false) &&
                   retrieval(70, 33, true) && retrieval(3000, 2000, false);
  return ran ? 0 : 1;
}
