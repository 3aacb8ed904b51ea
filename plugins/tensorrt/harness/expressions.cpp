#include "expressions.h"

#include <algorithm>
#include <stdexcept>

namespace ultramem::harness {

std::int64_t Expression::evaluate(const Values& values) const {
  if (!name_.empty()) return values.at(name_);
  if (first_ == nullptr) return value_;
  const std::int64_t a = first_->evaluate(values), b = second_->evaluate(values);
  switch (operation_) {
    case nvinfer1::DimensionOperation::kSUM:
      return a + b;
    case nvinfer1::DimensionOperation::kPROD:
      return a * b;
    case nvinfer1::DimensionOperation::kMAX:
      return std::max(a, b);
    case nvinfer1::DimensionOperation::kMIN:
      return std::min(a, b);
    case nvinfer1::DimensionOperation::kSUB:
      return a - b;
    case nvinfer1::DimensionOperation::kEQUAL:
      return a == b ? 1 : 0;
    case nvinfer1::DimensionOperation::kLESS:
      return a < b ? 1 : 0;
    case nvinfer1::DimensionOperation::kFLOOR_DIV:
      return a / b;
    case nvinfer1::DimensionOperation::kCEIL_DIV:
      return (a + b - 1) / b;
  }
  throw std::logic_error("an operation of no known kind");
}

}  // namespace ultramem::harness
