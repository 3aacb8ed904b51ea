// The operators' adapters: check what the host hands over, describe it to the kernel, spread it over the host's
// threads.
#pragma once

#include <cstdint>

#include "context.h"

namespace ultramem::onnxruntime {

// Attribute values in the order of the operator's description.
using Compute = void (*)(const Context& context, const std::int64_t* attributes);

void tucker_topk(const Context& context, const std::int64_t* attributes);
void sparse_gate(const Context& context, const std::int64_t* attributes);
void sparse_lookup(const Context& context, const std::int64_t* attributes);

}  // namespace ultramem::onnxruntime
