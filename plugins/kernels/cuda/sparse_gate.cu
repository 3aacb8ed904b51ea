// SparseGate. A block of threads takes one token and a few of its slots: the token's x goes to shared memory a stretch
// at a time, `lanes` threads share a row, and each group of lanes has several rows under way.
#include "../problems.h"
#include "block.cuh"
#include "launch.cuh"
#include "table.cuh"
#include "typed.h"

namespace ultramem::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsInFlight = 4;
constexpr int kResident = 6;    // blocks that a multiprocessor should hold: asked for more, ptxas spills
constexpr int kStretch = 2048;  // numbers of x held in shared memory

// Rows of one group of lanes: the slots first .. first + kRowsInFlight of the token, as far as they exist.
struct Rows {
  const char* data[kRowsInFlight];  // null where there is no slot, or its address is bad
  float scale[kRowsInFlight];
  std::int64_t first;
  int count;
};

template <typename Row>
ULTRAMEM_BLOCK Rows rows_of(const UltramemSparseGate& p, std::int64_t token, std::int64_t first) {
  Rows rows = {{}, {}, first, 0};
#pragma unroll
  for (int r = 0; r < kRowsInFlight; ++r) {
    if (first + r >= p.slots) continue;
    const std::int64_t address = __ldg(p.addresses + token * p.slots + first + r);
    rows.count = r + 1;
    if (address < 0 || p.table.rows == 0) continue;
    rows.data[r] = row_of<Row>(p.table, address % p.table.rows);
    rows.scale[r] = scale_of(p.table, address % p.table.rows);
  }
  return rows;
}

// sums[r] += <row r's columns from + .., x> over the columns [begin, end) of x, which lie in `x` from 0 on.
template <typename Reader, typename Row>
ULTRAMEM_BLOCK void add_dots(const Rows& rows, std::int64_t from, std::int64_t begin, std::int64_t end, const float* x,
                             int lane, int lanes, float (&sums)[kRowsInFlight]) {
  constexpr int kNumbers = Reader::kNumbers;
  for (std::int64_t column = begin + lane * kNumbers; column < end; column += lanes * kNumbers) {
    typename Reader::Loaded loaded[kRowsInFlight];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      if (rows.data[r] != nullptr) Reader::load(rows.data[r], from + column, loaded[r]);
    }
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      if (rows.data[r] == nullptr) continue;
      float numbers[kNumbers];
      Reader::decode(loaded[r], numbers);
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) sums[r] = fmaf(numbers[i], x[column - begin + i], sums[r]);
    }
  }
}

ULTRAMEM_BLOCK float silu(float value) { return value / (1.0f + expf(-value)); }

// `before` is the sum of a swiglu row's first half, and means nothing elsewhere.
ULTRAMEM_BLOCK float activate(UltramemActivation activation, float before, float sum) {
  constexpr float kInverseSqrt2 = 0.70710678118654752f;
  if (activation == ULTRAMEM_GELU) return 0.5f * sum * (1.0f + erff(sum * kInverseSqrt2));
  if (activation == ULTRAMEM_SILU) return silu(sum);
  return activation == ULTRAMEM_SWIGLU ? silu(before) * sum : sum;
}

// The sum over a group of lanes, in every one of them.
ULTRAMEM_BLOCK float sum_of_lanes(float value, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step, 32);
  return value;
}

// The columns [begin, end) of the token's x, as float.
ULTRAMEM_BLOCK void stage_x(const UltramemSparseGate& p, std::int64_t token, std::int64_t begin, std::int64_t end,
                            float* x) {
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    x[i - begin] = read(p.x, p.type, token * p.x_width + i);
  }
  __syncthreads();
}

template <typename Row, bool kWide>
__global__ void __launch_bounds__(kThreads, kResident) sparse_gate_kernel(UltramemSparseGate p, int lanes, int chunks) {
  using Reader = RowReader<Row, kWide>;
  __shared__ __align__(16) float x[kStretch];
  const std::int64_t token = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = kThreads / lanes;
  const Rows rows = rows_of<Row>(p, token, (chunk * groups + group) * kRowsInFlight);

  // A swiglu row is two rows side by side: `first` keeps the sums of the one while the other's are made.
  const int parts = p.activation == ULTRAMEM_SWIGLU ? 2 : 1;
  float first[kRowsInFlight] = {}, sums[kRowsInFlight] = {};
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      first[r] = sums[r];
      sums[r] = 0;
    }
    for (std::int64_t begin = 0; begin < p.x_width; begin += kStretch) {
      const std::int64_t end = begin + kStretch < p.x_width ? begin + kStretch : p.x_width;
      stage_x(p, token, begin, end, x);
      add_dots<Reader, Row>(rows, part * p.x_width, begin, end, x, lane, lanes, sums);
      __syncthreads();
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsInFlight; ++r) {
    const float before = rows.scale[r] * sum_of_lanes(first[r], lanes);
    const float gate = activate(p.activation, before, rows.scale[r] * sum_of_lanes(sums[r], lanes));
    if (lane != 0 || r >= rows.count) continue;
    write(p.gate, p.type, token * p.slots + rows.first + r, rows.data[r] == nullptr ? nanf("") : gate);
  }
}

template <typename Row, bool kWide>
UltramemLaunch launch(const UltramemSparseGate& p, UltramemStream stream) {
  const std::int64_t vectors = ceil_div(p.x_width, kWide ? Row::kNumbers : 1);
  const int lanes = vectors <= 8 ? 8 : vectors <= 16 ? 16 : 32;
  const std::int64_t chunks = ceil_div(p.slots, kThreads / lanes * kRowsInFlight);
  if (p.tokens > kMostBlocks / chunks) return refused(ULTRAMEM_BAD_SHAPE);
  return launch_kernel(sparse_gate_kernel<Row, kWide>, p.tokens * chunks, kThreads, 0, stream, p, lanes,
                       static_cast<int>(chunks));
}

}  // namespace
}  // namespace ultramem::cuda

using namespace ultramem;
using namespace ultramem::cuda;

extern "C" UltramemLaunch ultramem_cuda_sparse_gate(const UltramemSparseGate* problem, UltramemStream stream) {
  const UltramemSparseGate& p = *problem;
  if (!is_activation_type(p.type)) return refused(ULTRAMEM_UNSUPPORTED_TYPE);
  if (!is_sound(p)) return refused(ULTRAMEM_BAD_SHAPE);
  if (p.tokens == 0 || p.slots == 0) return {ULTRAMEM_OK, 0};
  UltramemLaunch outcome = refused(ULTRAMEM_UNSUPPORTED_TYPE);
  with_row(p.table.type, [&](auto row) {
    using Row = decltype(row);
    outcome = is_wide<Row>(p.table, p.x_width) ? launch<Row, true>(p, stream) : launch<Row, false>(p, stream);
  });
  return outcome;
}
