// Whole problems over a stub host's threads, several hosts at once on one table, for ThreadSanitizer: the results must
// be those of one thread. Prints what is wrong and exits 1.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "ultramem_kernels.h"
#include "ultramem_tables.h"

namespace {

constexpr std::int64_t kRows = 64, kWidth = 512, kTokens = 40, kSlots = 24, kHeads = 2, kKeys = 100, kKept = 9,
                       kPlaces = kWidth / 16, kHead = 16;
constexpr int kHosts = 3;

// Every task on a thread of its own, as the worst host would.
void parallel_for(void*, UltramemTask task, size_t count, void* data) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; ++i) threads.emplace_back(task, data, i);
  for (std::thread& thread : threads) thread.join();
}

std::vector<float> normal(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = distribution(generator);
  return values;
}

struct Inputs {
  std::vector<float> table = normal(kRows * kWidth, 1), scores = normal(kTokens * kSlots, 2),
                     x = normal(kTokens * kWidth, 3), keys = normal(kTokens * kHeads * 2 * kKeys, 4),
                     factors = normal(kHeads * 2, 5), cores = normal(kHeads * 4, 6);
  std::vector<std::int64_t> addresses;

  Inputs() {
    std::mt19937 generator(7);
    for (std::int64_t i = 0; i < kTokens * kSlots; ++i) addresses.push_back(generator() % (2 * kRows));
  }
};

struct Outputs {
  std::vector<float> sums = std::vector<float>(2 * kTokens * kWidth), gate = std::vector<float>(kTokens * kSlots),
                     kept = std::vector<float>(kTokens * kHeads * kKept),
                     attended = std::vector<float>(kTokens * kHeads * kHead),
                     multiplied = std::vector<float>(kTokens * kRows);
  std::vector<std::int64_t> indices = std::vector<std::int64_t>(kTokens * kHeads * kKept);
  bool fine = true;

  bool operator==(const Outputs& other) const {
    return fine && other.fine && sums == other.sums && gate == other.gate && kept == other.kept &&
           attended == other.attended && multiplied == other.multiplied && indices == other.indices;
  }
};

void run(const Inputs& in, const UltramemThreads* threads, Outputs* out) {
  const UltramemTable table{in.table.data(), ULTRAMEM_FLOAT32, kRows, kWidth, kWidth, nullptr, 0};
  const UltramemSparseLookup lookup{
      table, in.addresses.data(), in.scores.data(), out->sums.data(), ULTRAMEM_FLOAT32, kTokens, kSlots, 1, 2};
  const UltramemSparseGate gate{
      table,  in.addresses.data(), in.x.data(), out->gate.data(), ULTRAMEM_FLOAT32, kTokens, kSlots,
      kWidth, ULTRAMEM_SILU};
  const float* factors = in.factors.data();
  const UltramemTuckerTopK topk{in.keys.data(),
                                in.keys.data(),
                                factors,
                                factors,
                                in.cores.data(),
                                out->kept.data(),
                                out->indices.data(),
                                ULTRAMEM_FLOAT32,
                                kTokens,
                                kHeads,
                                2,
                                kKeys,
                                kKeys,
                                1,
                                kKept};
  // x as a cache: a token is a sequence, and both heads see the places of its row.
  const UltramemHeads cache{in.x.data(), kWidth, 0, kHead};
  const UltramemAttention attention{{in.keys.data(), kHeads * kHead, kHead, kHead},
                                    cache,
                                    cache,
                                    nullptr,
                                    0,
                                    out->attended.data(),
                                    ULTRAMEM_FLOAT32,
                                    kTokens,
                                    kHeads,
                                    kHeads,
                                    kPlaces,
                                    kHead,
                                    kHead,
                                    0.25f};
  const UltramemLinear linear{
      in.x.data(), in.table.data(), nullptr, out->multiplied.data(), ULTRAMEM_FLOAT32, ULTRAMEM_FLOAT32, kTokens,
      kRows,       kWidth,          kWidth};
  out->fine = ultramem_sparse_lookup_run(&lookup, threads).code == ULTRAMEM_OK &&
              ultramem_sparse_gate_run(&gate, threads).code == ULTRAMEM_OK &&
              ultramem_tucker_topk_run(&topk, threads).code == ULTRAMEM_OK &&
              ultramem_attention_run(&attention, threads).code == ULTRAMEM_OK &&
              ultramem_linear_run(&linear, threads).code == ULTRAMEM_OK;
}

// Hosts that place one file at once share one copy, which goes with the last of them. Linux alone maps files so.
bool shares_copies() {
  constexpr std::size_t kBytes = (8 << 20) + 4321;
  std::FILE* file = std::fopen("kernels_under_threads.table", "w+b");
  const std::vector<char> content(kBytes, 7);
  if (file == nullptr || std::fwrite(content.data(), 1, kBytes, file) != kBytes || std::fflush(file) != 0) return false;
  void* mapped = mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, fileno(file), 0);
  const char* table = static_cast<const char*>(mapped) + 321;
  UltramemPlace places[kHosts] = {};
  const auto place = [&](UltramemPlace* to) { ultramem_place(table, kBytes - 321, ULTRAMEM_TABLES_RESIDENT, to); };
  std::vector<std::thread> hosts;
  for (UltramemPlace& to : places) hosts.emplace_back(place, &to);
  for (std::thread& host : hosts) host.join();
  bool fine = places[0].data != table;
  for (UltramemPlace& held : places) {
    fine = fine && held.data == places[0].data && std::memcmp(held.data, table, kBytes - 321) == 0;
  }
  for (UltramemPlace& held : places) ultramem_release(&held);
  munmap(mapped, kBytes);
  std::fclose(file);
  std::remove("kernels_under_threads.table");
  return fine;
}

// Hosts ask for rows of a table on a disk while all look them up; the table goes while some still wait to be asked for.
bool asks_ahead(const Inputs& in) {
  constexpr std::size_t kBytes = kRows * kWidth * sizeof(float);
  std::FILE* file = std::fopen("kernels_under_threads.asked", "w+b");
  if (file == nullptr || std::fwrite(in.table.data(), 1, kBytes, file) != kBytes || std::fflush(file) != 0)
    return false;
  void* mapped = mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, fileno(file), 0);
  const auto count = static_cast<std::int64_t>(in.addresses.size());
  std::vector<float> sums[kHosts], expected(2 * kTokens * kWidth);
  const auto look_up = [&](const void* table, std::int32_t read_ahead, std::vector<float>* out) {
    out->resize(expected.size());
    const UltramemSparseLookup problem{{table, ULTRAMEM_FLOAT32, kRows, kWidth, kWidth, nullptr, read_ahead},
                                       in.addresses.data(),
                                       in.scores.data(),
                                       out->data(),
                                       ULTRAMEM_FLOAT32,
                                       kTokens,
                                       kSlots,
                                       1,
                                       2};
    for (int i = 0; read_ahead != 0 && i < 50; ++i) ultramem_ask_ahead(&problem.table, in.addresses.data(), count);
    ultramem_sparse_lookup_run(&problem, nullptr);
  };
  look_up(in.table.data(), 0, &expected);
  std::vector<std::thread> hosts;
  for (std::vector<float>& out : sums) hosts.emplace_back(look_up, mapped, 1, &out);
  for (std::thread& host : hosts) host.join();
  munmap(mapped, kBytes);
  std::fclose(file);
  std::remove("kernels_under_threads.asked");
  for (const std::vector<float>& out : sums) {
    if (out != expected) return false;
  }
  return true;
}

}  // namespace

int main() {
  const Inputs inputs;
  const UltramemThreads threads{parallel_for, nullptr, 0};
  Outputs outputs[kHosts], expected;
  std::vector<std::thread> hosts;
  for (Outputs& output : outputs) hosts.emplace_back(run, std::cref(inputs), &threads, &output);
  for (std::thread& host : hosts) host.join();
  run(inputs, nullptr, &expected);
  for (const Outputs& output : outputs) {
    if (output == expected) continue;
    std::printf("%s: threads change the result\n", ultramem_cpu_isa());
    return 1;
  }
  if (!shares_copies()) {
    std::printf("copies of one table differ\n");
    return 1;
  }
  if (!asks_ahead(inputs)) {
    std::printf("asking for rows early changes the result\n");
    return 1;
  }
  return 0;
}
