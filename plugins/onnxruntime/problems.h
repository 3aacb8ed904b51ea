// What a node asks of a kernel: the host's tensors checked, described, and given their outputs. Throws BadInput where
// they do not fit together.
#pragma once

#include <cstdint>

#include "context.h"

namespace ultramem::onnxruntime {

// Attribute values in the order of the operator's description.
UltramemTuckerTopK topk_problem(const Context& context, const std::int64_t* attributes);
UltramemSparseGate gate_problem(const Context& context, const std::int64_t* attributes);
UltramemSparseLookup lookup_problem(const Context& context, const std::int64_t* attributes);

}  // namespace ultramem::onnxruntime
