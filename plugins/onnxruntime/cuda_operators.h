// The operators' adapters for the CUDA provider: tensors lie in device memory, kernels go to the provider's stream.
#pragma once

#include <cstdint>

#include "context.h"

namespace ultramem::onnxruntime::cuda {

void tucker_topk(const Context& context, const std::int64_t* attributes);
void sparse_gate(const Context& context, const std::int64_t* attributes);
void sparse_lookup(const Context& context, const std::int64_t* attributes);

}  // namespace ultramem::onnxruntime::cuda
