// Runs the kernels as a host of its own would: padded tables, exact-size heap buffers that AddressSanitizer guards,
// every cut of the work, and refusals. Prints what is wrong and exits 1.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "ultramem_kernels.h"

namespace {

int failures = 0;

void expect(bool condition, const char* what, long detail) {
  if (condition) return;
  std::printf("%s: %s (%ld)\n", ultramem_cpu_isa(), what, detail);
  ++failures;
}

std::mt19937 generator(7);

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

std::int64_t bytes_of(UltramemType type, std::int64_t count) {
  return type == ULTRAMEM_FLOAT32 ? 4 * count : type == ULTRAMEM_INT4 ? (count + 1) / 2 : count;
}

// Rows padded with NaN (in integers, -1), the last of them not at all: reading one element too many shows, or faults.
struct PaddedTable {
  PaddedTable(std::int64_t rows, std::int64_t width, std::int64_t padding, UltramemType type = ULTRAMEM_FLOAT32)
      : scales(normal(rows)), stride(width + padding) {
    const std::int64_t row_bytes = bytes_of(type, width);
    padded.assign(static_cast<std::size_t>((rows - 1) * bytes_of(type, stride) + row_bytes), 0xff);
    for (std::int64_t r = 0; r < rows; ++r) {
      unsigned char* row = padded.data() + r * bytes_of(type, stride);
      const auto numbers = normal(width);
      if (type == ULTRAMEM_FLOAT32) std::memcpy(row, numbers.data(), static_cast<std::size_t>(row_bytes));
      // Any code but a NaN.
      else
        for (std::int64_t i = 0; i < row_bytes; ++i) row[i] = static_cast<unsigned char>(generator() & 0xf7);
    }
    table = {padded.data(), type, rows, width, stride, type == ULTRAMEM_FLOAT32 ? nullptr : scales.data(), 0};
  }
  std::vector<unsigned char> padded;
  std::vector<float> scales;
  std::int64_t stride;
  UltramemTable table;
};

constexpr UltramemType kTableTypes[] = {ULTRAMEM_FLOAT32, ULTRAMEM_INT8, ULTRAMEM_INT4, ULTRAMEM_FLOAT8_E4M3};

void lookup(UltramemType type, std::int64_t width, std::int64_t cores, std::int64_t blocks) {
  const std::int64_t rows = 5, tokens = 3, slots = 7, step = type == ULTRAMEM_INT4 ? 6 : 5;
  PaddedTable values(rows, width, 4 - width % 2, type);
  const auto address = addresses(tokens * slots, rows * blocks);
  const auto scores = normal(tokens * slots * cores);
  std::vector<float> whole(static_cast<std::size_t>(tokens * blocks * width), NAN), cut = whole;
  UltramemSparseLookup problem{values.table, address.data(), scores.data(), whole.data(), ULTRAMEM_FLOAT32,
                               tokens,       slots,          cores,         blocks};
  expect(ultramem_sparse_lookup(&problem, {0, tokens}, {0, width}, nullptr).code == ULTRAMEM_OK, "lookup", width);
  problem.output = cut.data();
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 0; c < width; c += step) {
      ultramem_sparse_lookup(&problem, {t, t + 1}, {c, c + step < width ? c + step : width}, nullptr);
    }
  }
  expect(std::memcmp(whole.data(), cut.data(), whole.size() * sizeof(float)) == 0, "lookup: the cut matters", width);
  const UltramemStatus out = ultramem_sparse_lookup(&problem, {0, tokens + 1}, {0, width}, nullptr);
  expect(out.code == ULTRAMEM_BAD_SHAPE, "lookup: a range outside the problem passes", width);
}

void lookup_refuses_addresses() {
  PaddedTable values(4, 8, 0);
  const float score = 1;
  float output[8];
  for (std::int64_t address : {std::int64_t{-1}, std::int64_t{4}, std::numeric_limits<std::int64_t>::max(),
                               std::numeric_limits<std::int64_t>::min()}) {
    const UltramemSparseLookup problem{values.table, &address, &score, output, ULTRAMEM_FLOAT32, 1, 1, 1, 1};
    const UltramemStatus status = ultramem_sparse_lookup(&problem, {0, 1}, {0, 8}, nullptr);
    expect(status.code == ULTRAMEM_BAD_ADDRESS && status.address == address, "lookup: a bad address passes", 0);
  }
}

void gate(UltramemType type, std::int64_t width, UltramemActivation activation) {
  const std::int64_t rows = 5, tokens = 3, slots = 70;  // several groups of rows
  const std::int64_t table_width = activation == ULTRAMEM_SWIGLU ? 2 * width : width;
  PaddedTable values(rows, table_width, 2 - table_width % 2, type);
  const auto address = addresses(tokens * slots, 9 * rows);
  const auto x = normal(tokens * width);
  std::vector<float> whole(static_cast<std::size_t>(tokens * slots), NAN), cut = whole;
  UltramemSparseGate problem{values.table, address.data(), x.data(), whole.data(), ULTRAMEM_FLOAT32,
                             tokens,       slots,          width,    activation};
  const std::size_t bytes = ultramem_sparse_gate_scratch(&problem);  // a multiple of 64: what is beyond is guarded
  const std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, bytes), std::free);
  expect(ultramem_sparse_gate(&problem, {0, tokens * slots}, scratch.get()).code == ULTRAMEM_OK, "gate", width);
  problem.gate = cut.data();
  for (std::int64_t pair = 0; pair < tokens * slots; ++pair) {
    ultramem_sparse_gate(&problem, {pair, pair + 1}, scratch.get());
  }
  expect(std::memcmp(whole.data(), cut.data(), whole.size() * sizeof(float)) == 0, "gate: the cut matters", width);
}

void topk(std::int64_t n_row, std::int64_t n_col, std::int64_t k) {
  const std::int64_t tokens = 2, heads = 2, rank = 2, cores = 2;
  auto row = normal(tokens * heads * rank * n_row);
  const auto col = normal(tokens * heads * rank * n_col), u = normal(heads * rank), v = normal(heads * rank);
  const auto core = normal(cores * heads * rank * rank);
  row[0] = NAN;
  std::vector<float> scores(static_cast<std::size_t>(tokens * heads * k * cores));
  std::vector<std::int64_t> indices(static_cast<std::size_t>(tokens * heads * k), -1);
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
                                   n_row,
                                   n_col,
                                   cores,
                                   k};
  std::vector<char> scratch(ultramem_tucker_topk_scratch(&problem) + 64);
  char* aligned = scratch.data() + (64 - reinterpret_cast<std::uintptr_t>(scratch.data()) % 64);
  expect(ultramem_tucker_topk(&problem, {0, tokens * heads}, aligned).code == ULTRAMEM_OK, "topk", k);
  for (const std::int64_t index : indices) expect(0 <= index && index < n_row * n_col, "topk: a wild index", index);
}

void quantised_tables_need_scales_and_whole_bytes() {
  PaddedTable values(4, 8, 0, ULTRAMEM_INT4);
  const std::int64_t address = 1;
  const float score = 1;
  float output[8];
  UltramemSparseLookup problem{values.table, &address, &score, output, ULTRAMEM_FLOAT32, 1, 1, 1, 1};
  const auto code = [&problem](std::int64_t begin) {
    return ultramem_sparse_lookup(&problem, {0, 1}, {begin, 8}, nullptr).code;
  };
  expect(code(2) == ULTRAMEM_OK && code(1) == ULTRAMEM_BAD_SHAPE, "int4: a column within a byte", 1);
  problem.table.row_stride = 9;
  expect(code(0) == ULTRAMEM_BAD_SHAPE, "int4: a row that starts within a byte", 9);
  problem.table.row_stride = 8, problem.table.scales = nullptr;
  expect(code(0) == ULTRAMEM_BAD_SHAPE, "int4: no scales", 0);
}

void topk_refuses_too_many() {
  UltramemTuckerTopK problem{};
  problem.tokens = problem.heads = problem.rank = problem.cores = 1;
  problem.n_row = 3, problem.n_col = 2, problem.k = 7;
  expect(ultramem_tucker_topk(&problem, {0, 1}, nullptr).code == ULTRAMEM_BAD_SHAPE, "topk: k beyond the grid", 7);
  problem.k = 6, problem.type = ULTRAMEM_BFLOAT16;
  expect(ultramem_tucker_topk(&problem, {0, 1}, nullptr).code == ULTRAMEM_UNSUPPORTED_TYPE, "topk: bfloat16", 6);
}

// So many finite numbers of 16 bits, of either type, or of 32: no exponent is the largest.
std::vector<unsigned char> numbers(UltramemType type, std::int64_t count) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(count * (type == ULTRAMEM_FLOAT32 ? 4 : 2)));
  const auto values = normal(count);
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    if (type == ULTRAMEM_FLOAT32) {
      std::memcpy(&bytes[4 * i], &bits, 4);
    } else {  // bfloat16 is the upper half; as a half's bits it is a number below 2
      std::memcpy(&bytes[2 * i], reinterpret_cast<const unsigned char*>(&bits) + 2, 2);
    }
  }
  return bytes;
}

// Keys and values behind one another with gaps, and none behind the last place of the last head.
void attention(UltramemType type, std::int64_t places, std::int64_t width, std::int64_t value_width) {
  const std::int64_t batch = 2, heads = 6, kv_heads = 2, gap = 3;
  const auto strided = [&](std::int64_t columns, std::vector<unsigned char>* held) -> UltramemHeads {
    const std::int64_t place = columns + gap, head = places * place + gap, sequence = kv_heads * head;
    *held = numbers(type, (batch - 1) * sequence + (kv_heads - 1) * head + (places - 1) * place + columns);
    return {held->data(), sequence, head, place};
  };
  std::vector<unsigned char> k_held, v_held, q = numbers(type, batch * heads * width);
  const UltramemHeads k = strided(width, &k_held), v = strided(value_width, &v_held);
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(batch * places), 1);
  for (std::int64_t p = 0; p + 1 < places; ++p) mask[static_cast<std::size_t>(p)] = generator() % 3 != 0;
  std::vector<unsigned char> whole(
      static_cast<std::size_t>(batch * heads * value_width) * (q.size() / (batch * heads * width)), 0xff);
  auto cut = whole;
  UltramemAttention problem{{q.data(), heads * width, width, width},
                            k,
                            v,
                            mask.data(),
                            places,
                            whole.data(),
                            type,
                            batch,
                            heads,
                            kv_heads,
                            places,
                            width,
                            value_width,
                            0.25f};
  std::vector<char> scratch(ultramem_attention_scratch(&problem) + 64);
  char* aligned = scratch.data() + (64 - reinterpret_cast<std::uintptr_t>(scratch.data()) % 64);
  expect(ultramem_attention(&problem, {0, batch * kv_heads}, aligned).code == ULTRAMEM_OK, "attention", places);
  problem.output = cut.data();
  for (std::int64_t i = 0; i < batch * kv_heads; ++i) ultramem_attention(&problem, {i, i + 1}, aligned);
  expect(whole == cut, "attention: the cut matters", places);
  problem.mask = nullptr;
  expect(ultramem_attention(&problem, {1, 3}, aligned).code == ULTRAMEM_OK, "attention: no mask", places);
  expect(ultramem_attention(&problem, {1, 5}, aligned).code == ULTRAMEM_BAD_SHAPE, "attention: a range outside", 5);
  problem.heads = 5;
  expect(ultramem_attention(&problem, {0, 1}, aligned).code == ULTRAMEM_BAD_SHAPE, "attention: groups of 2.5", 5);
  problem.heads = heads, problem.type = ULTRAMEM_INT8;
  expect(ultramem_attention(&problem, {0, 1}, aligned).code == ULTRAMEM_UNSUPPORTED_TYPE, "attention: int8", 8);
}

// x with gaps, and none behind the last row; columns cut between groups of four and within them.
void linear(UltramemType type, UltramemType output, std::int64_t rows, std::int64_t depth, std::int64_t columns) {
  const std::int64_t stride = depth + 3, item = output == ULTRAMEM_FLOAT32 ? 4 : 2;
  const auto x = numbers(type, (rows - 1) * stride + depth);
  const auto weight = numbers(type, columns * depth), bias = numbers(type, columns);
  std::vector<unsigned char> whole(static_cast<std::size_t>(rows * columns * item), 0xff);
  auto cut = whole;
  UltramemLinear problem{x.data(), weight.data(), bias.data(), whole.data(), type,
                         output,   rows,          columns,     depth,        stride};
  expect(ultramem_linear(&problem, {0, columns}).code == ULTRAMEM_OK, "linear", depth);
  problem.output = cut.data();
  const std::int64_t middle = columns / 3;
  ultramem_linear(&problem, {0, middle});
  ultramem_linear(&problem, {middle, columns});
  expect(whole == cut, "linear: the cut matters", columns);
  expect(ultramem_linear(&problem, {0, columns + 1}).code == ULTRAMEM_BAD_SHAPE, "linear: a range outside", columns);
  problem.x_stride = depth - 1;
  expect(ultramem_linear(&problem, {0, columns}).code == ULTRAMEM_BAD_SHAPE, "linear: rows that overlap", depth);
  problem.x_stride = stride, problem.type = ULTRAMEM_INT8;
  expect(ultramem_linear(&problem, {0, columns}).code == ULTRAMEM_UNSUPPORTED_TYPE, "linear: int8", depth);
}

}  // namespace

int main() {
  for (std::int64_t width : {1, 2, 7, 16, 17, 32, 40, 65, 130, 192}) {
    for (UltramemType type : kTableTypes) {
      for (std::int64_t blocks : {1, 3}) lookup(type, width, 1, blocks);
      if (width % 2 == 0) lookup(type, width, 2, 2);
      for (int activation = 0; activation < 4; ++activation) {
        gate(type, width, static_cast<UltramemActivation>(activation));
      }
    }
  }
  for (std::int64_t n : {1, 2, 15, 16, 17, 100}) {
    for (std::int64_t k : {1, 2, 9, 33}) {
      const std::int64_t side = k < n ? k : n;
      if (k <= side * side) topk(n, n, k);
      if (k <= side && n > 3) topk(n - 1, n, k < n - 1 ? k : n - 1);
    }
  }
  for (UltramemType type : {ULTRAMEM_FLOAT32, ULTRAMEM_FLOAT16, ULTRAMEM_BFLOAT16}) {
    for (std::int64_t places : {1, 5, 64, 131, 300}) {
      for (std::int64_t width : {1, 7, 16, 33, 80}) attention(type, places, width, 97 - width);
    }
  }
  for (UltramemType type : {ULTRAMEM_FLOAT32, ULTRAMEM_FLOAT16, ULTRAMEM_BFLOAT16}) {
    for (std::int64_t rows : {1, 5, 8, 131}) {
      for (std::int64_t depth : {1, 31, 64, 97}) {
        for (UltramemType output : {type, ULTRAMEM_FLOAT32}) linear(type, output, rows, depth, 100 - depth);
      }
    }
    linear(type, type, 8, 2100, 7);  // in pieces
  }
  lookup_refuses_addresses();
  quantised_tables_need_scales_and_whole_bytes();
  topk_refuses_too_many();
  return failures == 0 ? 0 : 1;
}
