// The device's block algorithms compiled for the host: every phase visits its items in a shuffled order, so a result
// that leans on the order of threads shows. Driven from test_block_algorithms.py.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/row.h"
#include "kernels/cuda/tucker_topk.h"

namespace {

using namespace ultramem;
using namespace ultramem::cuda;

class ShuffledBlock {
 public:
  explicit ShuffledBlock(std::uint32_t seed) : generator_(seed) {}

  template <typename F>
  void each(std::uint32_t count, const F& f) const {
    std::vector<std::uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), generator_);
    for (const std::uint32_t i : order) f(i);
  }
  template <typename F>
  void once(const F& f) const {
    f();
  }
  template <typename F, typename G>
  void split(const F& f, const G& g) const {
    if (generator_() % 2 == 0) {
      f(*this);
      g(*this);
    } else {
      g(*this);
      f(*this);
    }
  }
  static std::uint32_t add(std::uint32_t* at, std::uint32_t value) {
    const std::uint32_t before = *at;
    *at += value;
    return before;
  }

 private:
  mutable std::mt19937 generator_;
};

template <typename T>
void run(const UltramemTuckerTopK& problem, bool cache_ranks, std::uint32_t seed) {
  // 0xff bytes stand for what an earlier block left in shared memory.
  std::vector<char> memory(TuckerTopKScratch(problem, cache_ranks, nullptr).bytes, '\xff');
  const ShuffledBlock block(seed);
  for (std::int64_t item = 0; item < problem.tokens * problem.heads; ++item) {
    tucker_topk_item<T>(block, problem, item, TuckerTopKScratch(problem, cache_ranks, memory.data()));
  }
}

template <typename Row>
void decode_row(const void* bytes, float* wide, float* single) {
  Bytes16 loaded;
  std::memcpy(&loaded, bytes, sizeof loaded);
  float numbers[Row::kNumbers];
  Row::decode(loaded, numbers);
  for (int i = 0; i < Row::kNumbers; ++i) {
    wide[i] = numbers[i];
    single[i] = Row::at(bytes, i);
  }
}

}  // namespace

extern "C" {

void host_tucker_topk(const UltramemTuckerTopK* problem, int cache_ranks, std::uint32_t seed) {
  if (problem->type == ULTRAMEM_FLOAT32) run<float>(*problem, cache_ranks != 0, seed);
  if (problem->type == ULTRAMEM_FLOAT16) run<Half>(*problem, cache_ranks != 0, seed);
  if (problem->type == ULTRAMEM_BFLOAT16) run<BFloat16>(*problem, cache_ranks != 0, seed);
}

// The numbers in sixteen bytes of a table row, read at once and one by one.
void host_decode(int type, const void* bytes, float* wide, float* single) {
  switch (static_cast<UltramemType>(type)) {
    case ULTRAMEM_FLOAT32:
      return decode_row<PlainRow<float>>(bytes, wide, single);
    case ULTRAMEM_FLOAT16:
      return decode_row<PlainRow<Half>>(bytes, wide, single);
    case ULTRAMEM_BFLOAT16:
      return decode_row<PlainRow<BFloat16>>(bytes, wide, single);
    case ULTRAMEM_INT8:
      return decode_row<PlainRow<Int8>>(bytes, wide, single);
    case ULTRAMEM_INT4:
      return decode_row<Int4Row>(bytes, wide, single);
    case ULTRAMEM_FLOAT8_E4M3:
      return decode_row<PlainRow<Float8>>(bytes, wide, single);
  }
}

// `count` floats rounded to bfloat16 and to float16.
void host_round(const float* from, BFloat16* bfloat, Half* half, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    from_float(from[i], bfloat + i);
    from_float(from[i], half + i);
  }
}

}  // extern "C"
