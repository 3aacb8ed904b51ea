// Whole problems: cut into tasks, spread over the host's threads, each with scratch of its own.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>

#include "../problems.h"
#include "../ultramem_kernels.h"
#include "../ultramem_tables.h"
#include "row_bytes.h"

namespace ultramem {
namespace {

constexpr std::int64_t kMostTasks = 64;

// How many tasks to make of `bytes` of memory traffic: few enough that handing one over costs little beside it, and
// that the wait for a task's first rows does; as many for each thread, so that none is left with one more to do.
std::int64_t tasks_for(std::int64_t bytes, const UltramemThreads* threads) {
  constexpr std::int64_t kFewestBytes = 64 << 10, kBytesEach = 512 << 10, kTasksEach = 4;
  static const std::int64_t machine = std::max(1u, std::thread::hardware_concurrency());
  const std::int64_t count = threads == nullptr || threads->count <= 0 ? machine : threads->count;
  if (bytes < kFewestBytes * count) return std::max<std::int64_t>(1, std::min(kMostTasks, bytes / kFewestBytes));
  return std::min(kMostTasks, count * std::clamp<std::int64_t>(bytes / (kBytesEach * count), 1, kTasksEach));
}

// Part `index` of [0, size) cut into `parts` nearly equal ranges.
UltramemRange part_of(std::int64_t size, std::int64_t parts, std::int64_t index) {
  const std::int64_t each = size / parts, more = size % parts;
  const std::int64_t begin = index * each + std::min(index, more);
  return {begin, begin + each + (index < more ? 1 : 0)};
}

std::int64_t row_bytes(const UltramemTable& table) { return bytes_of(table.type, table.width); }

// Before the threads start, so that every row is on its way while the first are summed.
void begin_reads(const UltramemTable& table, const std::int64_t* addresses, std::int64_t count) {
  if (table.read_ahead != 0) ultramem_read_ahead(&table, addresses, count);
}

// Scratch that each thread keeps between runs: it only grows. Null where memory is short.
void* thread_scratch(std::size_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  constexpr std::size_t kAlignment = 64;
  static thread_local std::unique_ptr<void, Free> memory;
  static thread_local std::size_t size = 0;
  if (size < bytes || memory == nullptr) {
    size = (bytes / kAlignment + 1) * kAlignment;
    memory.reset();
    memory.reset(std::aligned_alloc(kAlignment, size));
  }
  return memory.get();
}

// `work(i, scratch)` for i in [0, count); the status of the first that is not OK.
template <typename Work>
UltramemStatus run(const UltramemThreads* threads, std::int64_t count, std::size_t scratch_bytes, const Work& work) {
  struct Batch {
    const Work& work;
    std::size_t scratch_bytes;
    UltramemStatus statuses[kMostTasks];
  };
  const auto task = [](void* data, std::size_t index) {
    auto& batch = *static_cast<Batch*>(data);
    void* scratch = thread_scratch(batch.scratch_bytes);
    batch.statuses[index] = scratch == nullptr ? UltramemStatus{ULTRAMEM_OUT_OF_MEMORY, 0, 0, 0}
                                               : batch.work(static_cast<std::int64_t>(index), scratch);
  };
  Batch batch{work, scratch_bytes, {}};
  if (count == 1 || threads == nullptr || threads->parallel_for == nullptr) {
    for (std::int64_t i = 0; i < count; ++i) task(&batch, static_cast<std::size_t>(i));
  } else if (count > 1) {
    threads->parallel_for(threads->host, task, static_cast<std::size_t>(count), &batch);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (batch.statuses[i].code != ULTRAMEM_OK) return batch.statuses[i];
  }
  return {ULTRAMEM_OK, 0, 0, 0};
}

}  // namespace
}  // namespace ultramem

using namespace ultramem;

extern "C" {

UltramemStatus ultramem_sparse_lookup_run(const UltramemSparseLookup* problem, const UltramemThreads* threads) {
  if (problem->tokens <= 0) return {problem->tokens < 0 ? ULTRAMEM_BAD_SHAPE : ULTRAMEM_OK, 0, 0, 0};
  begin_reads(problem->table, problem->addresses, problem->tokens * problem->slots);
  // Tokens first; columns where there are fewer tokens than tasks, in steps that keep cache lines whole.
  constexpr std::int64_t kColumnStep = 256;
  const std::int64_t width = problem->table.width;
  const std::int64_t tasks = tasks_for(problem->tokens * problem->slots * row_bytes(problem->table), threads);
  const std::int64_t by_token = std::min(tasks, problem->tokens);
  const std::int64_t steps = (width + kColumnStep - 1) / kColumnStep;
  const std::int64_t by_column = std::max<std::int64_t>(1, std::min(tasks / by_token, steps));
  const auto work = [&](std::int64_t i, void* scratch) {
    const UltramemRange part = part_of(steps, by_column, i % by_column);
    const UltramemRange columns = {part.begin * kColumnStep, std::min(part.end * kColumnStep, width)};
    return ultramem_sparse_lookup(problem, part_of(problem->tokens, by_token, i / by_column), columns, scratch);
  };
  return run(threads, by_token * by_column, ultramem_sparse_lookup_scratch(problem), work);
}

UltramemStatus ultramem_sparse_gate_run(const UltramemSparseGate* problem, const UltramemThreads* threads) {
  const std::int64_t pairs = problem->tokens * problem->slots;
  begin_reads(problem->table, problem->addresses, pairs);
  const std::int64_t tasks = std::min(pairs, tasks_for(pairs * row_bytes(problem->table), threads));
  const auto work = [&](std::int64_t i, void* scratch) {
    return ultramem_sparse_gate(problem, part_of(pairs, tasks, i), scratch);
  };
  return run(threads, tasks, ultramem_sparse_gate_scratch(problem), work);
}

UltramemStatus ultramem_tucker_topk_run(const UltramemTuckerTopK* problem, const UltramemThreads* threads) {
  // Stage 1 reads rank * (n_row + n_col) numbers, stage 2 scores k_row * k_col pairs; selecting costs about as much
  // again.
  constexpr std::int64_t kBytesPerScore = 8;
  const std::int64_t k_row = std::min(problem->k, problem->n_row), k_col = std::min(problem->k, problem->n_col);
  const std::int64_t items = problem->tokens * problem->heads;
  const std::int64_t scores = problem->rank * (problem->n_row + problem->n_col) + k_row * k_col;
  const std::int64_t tasks = std::min(items, tasks_for(items * scores * kBytesPerScore, threads));
  const auto work = [&](std::int64_t i, void* scratch) {
    return ultramem_tucker_topk(problem, part_of(items, tasks, i), scratch);
  };
  return run(threads, tasks, ultramem_tucker_topk_scratch(problem), work);
}

UltramemStatus ultramem_attention_run(const UltramemAttention* problem, const UltramemThreads* threads) {
  if (!is_sound(*problem)) return {ULTRAMEM_BAD_SHAPE, 0, 0, 0};
  const std::int64_t items = problem->batch * problem->kv_heads;
  const std::int64_t numbers = items * problem->places * (problem->width + problem->value_width);
  const std::int64_t tasks = std::min(items, tasks_for(bytes_of(problem->type, numbers), threads));
  const auto work = [&](std::int64_t i, void* scratch) {
    return ultramem_attention(problem, part_of(items, tasks, i), scratch);
  };
  return run(threads, tasks, ultramem_attention_scratch(problem), work);
}

UltramemStatus ultramem_linear_run(const UltramemLinear* problem, const UltramemThreads* threads) {
  if (!is_sound(*problem)) return {ULTRAMEM_BAD_SHAPE, 0, 0, 0};
  // Whole groups of the columns that the kernel takes together.
  constexpr std::int64_t kGroup = 4;
  const std::int64_t groups = (problem->columns + kGroup - 1) / kGroup;
  const std::int64_t bytes = bytes_of(problem->type, problem->columns * problem->depth);
  const std::int64_t tasks = std::min(groups, tasks_for(bytes, threads));
  const auto work = [&](std::int64_t i, void*) {
    const UltramemRange part = part_of(groups, tasks, i);
    return ultramem_linear(problem, {part.begin * kGroup, std::min(part.end * kGroup, problem->columns)});
  };
  return run(threads, tasks, 0, work);
}

}  // extern "C"
