#include "operators.h"

#include "problems.h"

namespace ultramem::onnxruntime {

void sparse_lookup(const Context& context, const std::int64_t* attributes) {
  const UltramemSparseLookup problem = lookup_problem(context, attributes);
  context.run([&](const UltramemThreads* threads) { return ultramem_sparse_lookup_run(&problem, threads); });
}

void sparse_gate(const Context& context, const std::int64_t* attributes) {
  const UltramemSparseGate problem = gate_problem(context, attributes);
  context.run([&](const UltramemThreads* threads) { return ultramem_sparse_gate_run(&problem, threads); });
}

void tucker_topk(const Context& context, const std::int64_t* attributes) {
  const UltramemTuckerTopK problem = topk_problem(context, attributes);
  context.run([&](const UltramemThreads* threads) { return ultramem_tucker_topk_run(&problem, threads); });
}

}  // namespace ultramem::onnxruntime
