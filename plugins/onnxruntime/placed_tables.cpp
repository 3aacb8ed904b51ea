#include "placed_tables.h"

#include <cstring>
#include <memory>
#include <string>

#include "context.h"

namespace ultramem::onnxruntime {
namespace {

bool is_table(const Port& port) {
  return std::strcmp(port.name, "table") == 0 || std::strcmp(port.name, "scales") == 0;
}

// Null where input `index` is no constant, or is not there.
const OrtValue* constant_input(const OrtApi* api, const OrtKernelInfo* info, std::size_t index) {
  int constant = 0;
  const OrtValue* value = nullptr;
  if (OrtStatus* status = ort::KernelInfoGetConstantInput::of(api)(info, index, &constant, &value)) {
    ort::ReleaseStatus::of(api)(status);
    return nullptr;
  }
  return constant != 0 ? value : nullptr;
}

}  // namespace

PlacedTables::~PlacedTables() {
  for (Placed& table : tables_) ultramem_release(&table.place);
}

void PlacedTables::place(const OrtApi* api, const Operator& op, const OrtKernelInfo* info, UltramemTables wanted) {
  for (int i = 0; i < op.input_count; ++i) {
    const OrtValue* value = is_table(op.inputs[i]) ? constant_input(api, info, static_cast<std::size_t>(i)) : nullptr;
    if (value == nullptr) continue;
    const Input input = input_of(api, value);
    const std::size_t bytes = byte_size(input);
    Placed placed{input.data, {}};
    require(
        ultramem_place(input.data, bytes, wanted, &placed.place) == ULTRAMEM_OK, op,
        std::string("input ") + op.inputs[i].name + " of " + std::to_string(bytes) +
            " bytes cannot be resident: it does not fit into the memory that is available, or its file changed; set "
            "ultramem.tables to mapped");
    tables_.push_back(placed);
  }
}

UltramemPlace PlacedTables::at(const void* data) const {
  for (const Placed& table : tables_) {
    if (table.original == data) return table.place;
  }
  return {data, 0, nullptr};
}

}  // namespace ultramem::onnxruntime
