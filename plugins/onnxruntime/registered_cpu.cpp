// libultramem_ort: the CPU provider alone.
#include "../operators.h"
#include "operators.h"

namespace ultramem::onnxruntime {

const std::vector<Registered>& registered() {
  static const char kCpu[] = "CPUExecutionProvider";
  static const std::vector<Registered> all = {{operators::kTuckerTopK, tucker_topk, kCpu},
                                              {operators::kSparseGate, sparse_gate, kCpu},
                                              {operators::kSparseLookup, sparse_lookup, kCpu}};
  return all;
}

}  // namespace ultramem::onnxruntime
