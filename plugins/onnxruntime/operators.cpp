#include "operators.h"

#include <algorithm>

#include "../operators.h"
#include "problems.h"

namespace ultramem::onnxruntime {
namespace {

// Bytes of `count` rows of the table.
std::int64_t bytes_of(const UltramemTable& table, std::int64_t count) {
  switch (table.type) {
    case ULTRAMEM_FLOAT32:
      return 4 * count * table.width;
    case ULTRAMEM_FLOAT16:
    case ULTRAMEM_BFLOAT16:
      return 2 * count * table.width;
    case ULTRAMEM_INT8:
    case ULTRAMEM_FLOAT8_E4M3:
      return count * table.width;
    case ULTRAMEM_INT4:
      break;
  }
  return count * table.width / 2;
}

}  // namespace

void sparse_lookup(const Context& context, const std::int64_t* attributes) {
  const UltramemSparseLookup problem = lookup_problem(context, attributes);
  if (problem.tokens == 0) return;

  // Tokens first; columns where there are fewer tokens than tasks, in steps that keep cache lines whole.
  constexpr std::int64_t kColumnStep = 256;
  const std::int64_t width = problem.table.width;
  const std::int64_t tasks = tasks_for(bytes_of(problem.table, problem.tokens * problem.slots));
  const std::int64_t by_token = std::min(tasks, problem.tokens);
  const std::int64_t steps = (width + kColumnStep - 1) / kColumnStep;
  const std::int64_t by_column = std::max<std::int64_t>(1, std::min(tasks / by_token, steps));
  context.run(by_token * by_column, ultramem_sparse_lookup_scratch(&problem), [&](std::int64_t i, void* scratch) {
    const UltramemRange part = part_of(steps, by_column, i % by_column);
    const UltramemRange columns = {part.begin * kColumnStep, std::min(part.end * kColumnStep, width)};
    return ultramem_sparse_lookup(&problem, part_of(problem.tokens, by_token, i / by_column), columns, scratch);
  });
}

void sparse_gate(const Context& context, const std::int64_t* attributes) {
  const UltramemSparseGate problem = gate_problem(context, attributes);
  const std::int64_t pairs = problem.tokens * problem.slots;
  const std::int64_t tasks = std::min(pairs, tasks_for(bytes_of(problem.table, pairs)));
  context.run(tasks, ultramem_sparse_gate_scratch(&problem), [&](std::int64_t i, void* scratch) {
    return ultramem_sparse_gate(&problem, part_of(pairs, tasks, i), scratch);
  });
}

void tucker_topk(const Context& context, const std::int64_t* attributes) {
  const UltramemTuckerTopK problem = topk_problem(context, attributes);

  // Stage 1 reads rank * (n_row + n_col) numbers, stage 2 scores k_row * k_col pairs; selecting costs about as much
  // again.
  constexpr std::int64_t kBytesPerScore = 8;
  const std::int64_t items = problem.tokens * problem.heads;
  const std::int64_t k_row = std::min(problem.k, problem.n_row), k_col = std::min(problem.k, problem.n_col);
  const std::int64_t scores = problem.rank * (problem.n_row + problem.n_col) + k_row * k_col;
  const std::int64_t tasks = std::min(items, tasks_for(items * scores * kBytesPerScore));
  context.run(tasks, ultramem_tucker_topk_scratch(&problem), [&](std::int64_t i, void* scratch) {
    return ultramem_tucker_topk(&problem, part_of(items, tasks, i), scratch);
  });
}

}  // namespace ultramem::onnxruntime
