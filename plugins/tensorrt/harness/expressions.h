// Dimension expressions of our own: what a plugin builds in getOutputShapes, kept as trees and evaluated afterwards.
//
// TensorRT's own are behind its library. The interface classes only forward to an implementation pointer, so a builder
// here hands out the real interface types with implementations of ours behind them.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ultramem::harness {

// The value of every free dimension.
using Values = std::map<std::string, std::int64_t>;

class Expression final : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
 public:
  explicit Expression(std::int64_t value) : value_(value) { mImpl = this; }
  explicit Expression(std::string name) : name_(std::move(name)) { mImpl = this; }
  Expression(nvinfer1::DimensionOperation operation, const Expression& first, const Expression& second)
      : operation_(operation), first_(&first), second_(&second) {
    mImpl = this;
  }

  std::int64_t evaluate(const Values& values) const;

  bool isConstant() const override { return name_.empty() && first_ == nullptr; }
  std::int64_t getConstantValue() const override { return isConstant() ? value_ : INT64_MIN; }
  bool isSizeTensor() const override { return false; }

 private:
  std::int64_t value_ = 0;
  std::string name_;
  nvinfer1::DimensionOperation operation_{};
  const Expression* first_ = nullptr;
  const Expression* second_ = nullptr;
};

class ExpressionBuilder final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
 public:
  ExpressionBuilder() { mImpl = this; }

  // A dimension that only the caller knows.
  const Expression* free(const std::string& name) { return keep(std::make_unique<Expression>(name)); }

  const nvinfer1::IDimensionExpr* constant(std::int64_t value) override {
    return keep(std::make_unique<Expression>(value));
  }
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                            const nvinfer1::IDimensionExpr& first,
                                            const nvinfer1::IDimensionExpr& second) override {
    return keep(std::make_unique<Expression>(operation, static_cast<const Expression&>(first),
                                             static_cast<const Expression&>(second)));
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(std::int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    ++size_tensors_;
    return nullptr;
  }

  // How often a plugin asked for a dimension that depends on data.
  int size_tensors() const { return size_tensors_; }

 private:
  const Expression* keep(std::unique_ptr<Expression> expression) {
    kept_.push_back(std::move(expression));
    return kept_.back().get();
  }

  std::vector<std::unique_ptr<Expression>> kept_;
  int size_tensors_ = 0;
};

}  // namespace ultramem::harness
