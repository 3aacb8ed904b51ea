// The tables of one node: constants of the model, placed where the session wants them when the node is made.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/ultramem_tables.h"
#include "../shapes.h"
#include "ort_abi.h"

namespace ultramem::onnxruntime {

class PlacedTables {
 public:
  PlacedTables() = default;
  PlacedTables(const PlacedTables&) = delete;
  PlacedTables& operator=(const PlacedTables&) = delete;
  ~PlacedTables();

  // Places every table and its scales that are constants of the node. Throws BadInput where they do not fit.
  void place(const OrtApi* api, const Operator& op, const OrtKernelInfo* info, UltramemTables wanted);

  // Where to read what the host has at `data`.
  UltramemPlace at(const void* data) const;

 private:
  struct Placed {
    const void* original;
    UltramemPlace place;
  };

  std::vector<Placed> tables_;
};

}  // namespace ultramem::onnxruntime
