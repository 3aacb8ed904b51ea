// An operator's description as ONNX Runtime wants it: a table of callbacks, one for every combination of types.
#pragma once

#include <memory>
#include <vector>

#include "operators.h"
#include "ort_abi.h"

namespace ultramem::onnxruntime {

struct CustomOp : OrtCustomOp {
  // `types[v]` is the element type that type variable v has in this combination.
  CustomOp(const Registered& registered, std::vector<ElementType> types, UltramemTables tables);

  std::int32_t type_of(const Port& port) const;
  bool on_cpu() const;

  const Operator& op;
  std::vector<ElementType> types;
  Compute compute;
  const char* provider;
  UltramemTables tables;  // where its nodes' tables shall lie
};

// One CustomOp for every combination of the operator's types: a registered name hides the model's function body for
// every type, so none may be missing.
std::vector<std::unique_ptr<CustomOp>> combinations(const Registered& registered, UltramemTables tables);

}  // namespace ultramem::onnxruntime
