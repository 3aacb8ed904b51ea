#include "shapes.h"

#include <cstring>

namespace ultramem {
namespace {

constexpr std::size_t kMostSymbols = 16;

// "[T, H, R, n_row]"
std::string symbols(const Port& port) {
  std::string text = "[";
  for (int d = 0; d < port.rank; ++d) text.append(d == 0 ? "" : ", ").append(port.shape[d]);
  return text + "]";
}

}  // namespace

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t d = 0; d < shape.size(); ++d) text.append(d == 0 ? "" : ", ").append(std::to_string(shape[d]));
  return text + "]";
}

void refuse(const Operator& op, const std::string& problem) { throw BadInput(std::string(op.name) + ": " + problem); }

BoundShapes::BoundShapes(const Operator& op, const std::vector<Shape>& inputs) {
  std::size_t needed = 0;
  while (needed < static_cast<std::size_t>(op.input_count) && !op.inputs[needed].optional) ++needed;
  require(needed <= inputs.size() && inputs.size() <= static_cast<std::size_t>(op.input_count), op, "expected ", needed,
          " to ", op.input_count, " inputs, found ", inputs.size());
  bindings_.reserve(kMostSymbols);
  for (std::size_t i = 0; i < inputs.size(); ++i) bind(op, op.inputs[i], inputs[i]);
}

void BoundShapes::bind(const Operator& op, const Port& port, const Shape& shape) {
  const auto where = [&] {
    return std::string("input ") + port.name + " must be " + symbols(port) + ", found " + to_string(shape);
  };
  if (shape.size() != static_cast<std::size_t>(port.rank)) refuse(op, where());
  for (int d = 0; d < port.rank; ++d) {
    const char* symbol = port.shape[d];
    const std::int64_t size = shape[static_cast<std::size_t>(d)];
    if (const Binding* known = find(symbol); known == nullptr) {
      bindings_.push_back({symbol, port.name, size});
    } else if (known->size != size) {
      refuse(op, where() + ": " + symbol + " is " + std::to_string(known->size) + " in " + known->port);
    }
  }
}

std::int64_t BoundShapes::operator[](const char* symbol) const {
  const Binding* known = find(symbol);
  if (known == nullptr) throw std::logic_error(std::string("no dimension is called ") + symbol);
  return known->size;
}

const BoundShapes::Binding* BoundShapes::find(const char* symbol) const {
  for (const Binding& binding : bindings_) {
    if (std::strcmp(binding.symbol, symbol) == 0) return &binding;
  }
  return nullptr;
}

}  // namespace ultramem
