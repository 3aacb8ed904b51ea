// The operators' adapters: check what the host hands over, describe it to the kernel, spread it over the host's
// threads.
#pragma once

#include <cstdint>
#include <vector>

#include "context.h"

namespace ultramem::onnxruntime {

// Attribute values in the order of the operator's description.
using Compute = void (*)(const Context& context, const std::int64_t* attributes);

// An operator's kernel for one of the host's execution providers.
struct Registered {
  const Operator& op;
  Compute compute;
  const char* provider;
};

// What this library registers: for each provider every described operator, since a registered name hides the model's
// function body. Defined once for each library, in registered_*.cpp.
const std::vector<Registered>& registered();

void tucker_topk(const Context& context, const std::int64_t* attributes);
void sparse_gate(const Context& context, const std::int64_t* attributes);
void sparse_lookup(const Context& context, const std::int64_t* attributes);

}  // namespace ultramem::onnxruntime
