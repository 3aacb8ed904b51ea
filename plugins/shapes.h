// Checks the shapes that a host hands over against an operator's description, and names what does not fit.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "description.h"

namespace ultramem {

// What a user's model did wrong; the message names operator, port, what was expected and what was found.
class BadInput : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Shape = std::vector<std::int64_t>;

// "[3, 16, 2]"
std::string to_string(const Shape& shape);

[[noreturn]] void refuse(const Operator& op, const std::string& problem);

// Throws BadInput unless `condition`. The parts of the problem become a text only then: a check runs at every call.
template <typename... Parts>
void require(bool condition, const Operator& op, const Parts&... parts) {
  if (condition) return;
  std::ostringstream problem;
  (problem << ... << parts);
  refuse(op, problem.str());
}

// The value that each symbol of the description has in the shapes at hand.
class BoundShapes {
 public:
  // Throws BadInput where a rank differs from the description, or two equal symbols have different sizes. Optional
  // inputs at the end may be missing.
  BoundShapes(const Operator& op, const std::vector<Shape>& inputs);

  // The size of `symbol`, which must occur in the description.
  std::int64_t operator[](const char* symbol) const;

 private:
  struct Binding {
    const char* symbol;
    const char* port;
    std::int64_t size;
  };

  void bind(const Operator& op, const Port& port, const Shape& shape);
  const Binding* find(const char* symbol) const;

  std::vector<Binding> bindings_;
};

}  // namespace ultramem
