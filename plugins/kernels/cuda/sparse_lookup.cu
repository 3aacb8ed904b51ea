// SparseLookup. A block of threads sums one run of columns of one virtual block of one token:
//
//   it keeps the token's slots that name this virtual block (each row is read by one block alone);
//   `lanes` threads share a row, sixteen bytes each; the other groups of lanes take other rows;
//   each group has several rows under way before it adds the first; the groups' sums are added in order at the end.
#include "../problems.h"
#include "block.cuh"
#include "launch.cuh"
#include "table.cuh"
#include "typed.h"

namespace ultramem::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kRowsInFlight = 4;

// Blocks that a multiprocessor should hold: what registers allow (64 a thread, or 128 where a thread holds many sums).
// Left to itself, ptxas aims higher and spills.
template <typename Row, bool kWide>
constexpr int kResident = kWide && Row::kNumbers > 8 ? 4 : 8;

// The slots of one stretch of kThreads slots that name our virtual block, in their order.
struct Kept {
  std::int64_t row[kThreads];
  float scale[kThreads];
  std::int32_t slot[kThreads];
  std::int32_t in_warp[kWarps];
  std::int32_t bad;  // an address outside the table was seen
};

// One slot a thread; returns how many were kept. Ballots keep the order, which atomics would not.
ULTRAMEM_BLOCK int keep_slots(const UltramemSparseLookup& p, std::int64_t token, std::int64_t block, std::int64_t begin,
                              Kept& kept) {
  const std::int64_t slot = begin + threadIdx.x, rows = p.table.rows;
  const std::int64_t address = slot < p.slots ? __ldg(p.addresses + token * p.slots + slot) : -1;
  if (slot < p.slots && (address < 0 || address >= p.blocks * rows)) kept.bad = 1;
  const std::int64_t row = address - block * rows;
  const bool mine = address >= 0 && row >= 0 && row < rows;
  const unsigned votes = __ballot_sync(~0u, mine), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) kept.in_warp[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1)), count = 0;
  for (unsigned w = 0; w < kWarps; ++w) {
    if (w < warp) before += kept.in_warp[w];
    count += kept.in_warp[w];
  }
  if (mine) {
    kept.row[before] = row;
    kept.scale[before] = scale_of(p.table, row);
    kept.slot[before] = static_cast<std::int32_t>(slot - begin);
  }
  __syncthreads();
  return count;
}

// The run of columns that a thread sums, and the weight of a slot there.
struct Share {
  std::int64_t token;
  std::int64_t column;
  std::int64_t core;
  bool active;
};

// Adds the kept rows first, first + 1 .. (at most kRowsInFlight, below `count`): all are requested, then all are added.
template <typename Reader, typename Row>
ULTRAMEM_BLOCK void add_rows(const UltramemSparseLookup& p, const Kept& kept, std::int64_t begin, int first, int count,
                             const Share& share, float (&sums)[Reader::kNumbers]) {
  typename Reader::Loaded loaded[kRowsInFlight];
  float weights[kRowsInFlight];
#pragma unroll
  for (int r = 0; r < kRowsInFlight; ++r) {
    if (first + r >= count) continue;
    const std::int64_t slot = share.token * p.slots + begin + kept.slot[first + r];
    Reader::load(row_of<Row>(p.table, kept.row[first + r]), share.column, loaded[r]);
    weights[r] = read(p.scores, p.type, slot * p.cores + share.core) * kept.scale[first + r];
  }
#pragma unroll
  for (int r = 0; r < kRowsInFlight; ++r) {
    if (first + r >= count) continue;
    float numbers[Reader::kNumbers];
    Reader::decode(loaded[r], numbers);
#pragma unroll
    for (int i = 0; i < Reader::kNumbers; ++i) sums[i] = fmaf(weights[r], numbers[i], sums[i]);
  }
}

// Writes the groups' sums of `width` columns, added in the groups' order.
ULTRAMEM_BLOCK void write_sums(const UltramemSparseLookup& p, const float* sums, int groups, int width, bool bad,
                               std::int64_t at, std::int64_t columns) {
  for (int i = threadIdx.x; i < width && i < columns; i += kThreads) {
    float sum = bad ? nanf("") : 0.0f;
    for (int g = 0; g < groups; ++g) sum += sums[g * width + i];
    write(p.output, p.type, at + i, sum);
  }
}

template <typename Row, bool kWide>
__global__ void __launch_bounds__(kThreads, kResident<Row, kWide>)
    sparse_lookup_kernel(UltramemSparseLookup p, int lanes, int chunks) {
  using Reader = RowReader<Row, kWide>;
  constexpr int kNumbers = Reader::kNumbers;
  __shared__ Kept kept;
  __shared__ float sums_of_groups[kThreads * kNumbers];

  const std::int64_t chunk = blockIdx.x % chunks, unit = blockIdx.x / chunks;
  const std::int64_t block = unit % p.blocks, token = unit / p.blocks, width = p.table.width;
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = kThreads / lanes;
  const std::int64_t first = chunk * lanes * kNumbers, column = first + lane * kNumbers;
  const bool active = column < width;
  const Share share = {token, column, active ? column / (width / p.cores) : 0, active};
  if (threadIdx.x == 0) kept.bad = 0;
  __syncthreads();

  float sums[kNumbers] = {};
  for (std::int64_t begin = 0; begin < p.slots; begin += kThreads) {
    const int count = keep_slots(p, token, block, begin, kept);
    for (int at = group * kRowsInFlight; share.active && at < count; at += groups * kRowsInFlight) {
      add_rows<Reader, Row>(p, kept, begin, at, count, share, sums);
    }
    __syncthreads();
  }
  for (int i = 0; i < kNumbers; ++i) sums_of_groups[threadIdx.x * kNumbers + i] = sums[i];
  __syncthreads();
  write_sums(p, sums_of_groups, groups, lanes * kNumbers, kept.bad != 0, unit * width + first, width - first);
}

// Lanes for `vectors` loads a row: as many as leave few idle, fewer where the blocks would not fill a device.
int choose_lanes(std::int64_t vectors, std::int64_t units) {
  constexpr std::int64_t kBlocksToFill = 512;
  int best = vectors <= 8 ? 8 : 16;
  for (int lanes = 32; lanes <= kThreads; lanes *= 2) {
    const std::int64_t chunks = ceil_div(vectors, lanes);
    const bool wasteful = (chunks * lanes - vectors) * 8 > vectors;
    if (!wasteful && units * chunks >= kBlocksToFill) best = lanes;
  }
  return best;
}

template <typename Row, bool kWide>
UltramemLaunch launch(const UltramemSparseLookup& p, int lanes, UltramemStream stream) {
  const std::int64_t vectors = ceil_div(p.table.width, kWide ? Row::kNumbers : 1), units = p.tokens * p.blocks;
  if (lanes == 0) lanes = choose_lanes(vectors, units);
  const std::int64_t chunks = ceil_div(vectors, lanes);
  if (units > kMostBlocks / chunks) return refused(ULTRAMEM_BAD_SHAPE);
  return launch_kernel(sparse_lookup_kernel<Row, kWide>, units * chunks, kThreads, 0, stream, p, lanes,
                       static_cast<int>(chunks));
}

bool is_lanes(int lanes) { return lanes == 0 || (lanes >= 8 && lanes <= kThreads && (lanes & (lanes - 1)) == 0); }

}  // namespace
}  // namespace ultramem::cuda

using namespace ultramem;
using namespace ultramem::cuda;

extern "C" UltramemLaunch ultramem_cuda_sparse_lookup(const UltramemSparseLookup* problem, UltramemLanes lanes,
                                                      UltramemStream stream) {
  const UltramemSparseLookup& p = *problem;
  if (!is_activation_type(p.type)) return refused(ULTRAMEM_UNSUPPORTED_TYPE);
  if (!is_sound(p) || !is_lanes(lanes)) return refused(ULTRAMEM_BAD_SHAPE);
  if (p.tokens == 0 || p.table.width == 0) return {ULTRAMEM_OK, 0};
  UltramemLaunch outcome = refused(ULTRAMEM_UNSUPPORTED_TYPE);
  with_row(p.table.type, [&](auto row) {
    using Row = decltype(row);
    outcome = is_wide<Row>(p.table, p.table.width / p.cores) ? launch<Row, true>(p, lanes, stream)
                                                             : launch<Row, false>(p, lanes, stream);
  });
  return outcome;
}
