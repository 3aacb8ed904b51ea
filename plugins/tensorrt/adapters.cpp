#include "adapters.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace ultramem::tensorrt {
namespace {

using nvinfer1::DimensionOperation;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::IDimensionExpr;
using nvinfer1::IExprBuilder;

constexpr std::int64_t kMostBlocks = 1 << 20;  // as every host's adapter: no product of sizes overflows

const IDimensionExpr* product(IExprBuilder& builder, const IDimensionExpr& size, std::int64_t factor) {
  return builder.operation(DimensionOperation::kPROD, size, *builder.constant(factor));
}

DimsExprs dims(std::initializer_list<const IDimensionExpr*> sizes) {
  DimsExprs all{};
  for (const IDimensionExpr* size : sizes) all.d[all.nbDims++] = size;
  return all;
}

void require_between(const Operator& op, const char* attribute, std::int64_t value, std::int64_t most) {
  require(1 <= value && value <= most, op,
          std::string(attribute) + " must be in [1, " + std::to_string(most) + "], found " + std::to_string(value));
}

// Numbers in a row of `width` elements.
std::int64_t numbers_in(std::int64_t width, Encoding encoding) {
  return encoding == Encoding::kInt4 ? 2 * width : width;
}

// The table, input 0 of every operator that has one, with its scales, where there are any, at input `scales`.
UltramemTable table_of(const Run& run, int scales, Encoding encoding) {
  const nvinfer1::PluginTensorDesc& table = run.inputs[0];
  const std::int64_t width = numbers_in(table.dims.d[1], encoding);
  const void* scale = encoding == Encoding::kFloat ? nullptr : run.input_data[scales];
  return {run.input_data[0],
          table_type(table.type, encoding),
          table.dims.d[0],
          width,
          width,
          static_cast<const float*>(scale),
          0};
}

std::size_t no_workspace(const Dims*, const Attributes&) { return 0; }

namespace topk {

using namespace operators::tucker_top_k;

void output_shapes(const DimsExprs* in, const Attributes& attributes, DimsExprs* out, IExprBuilder& builder) {
  const IDimensionExpr* tokens = in[kRowScores].d[0];
  const IDimensionExpr* taken = product(builder, *in[kRowScores].d[1], attributes[kK]);
  out[kScores] = dims({tokens, taken, in[kCore].d[0]});
  out[kIndices] = dims({tokens, taken});
}

void check(const BoundShapes& size, const Attributes& attributes) {
  const Operator& op = operators::kTuckerTopK;
  const std::int64_t k = attributes[kK], n_row = size["n_row"], n_col = size["n_col"];
  require_between(op, "k", k, ULTRAMEM_MOST_KEPT);
  require(size["R"] >= 1 && size["M"] >= 1, op, "input core must have at least one core and one rank");
  require(std::max(n_row, n_col) <= ULTRAMEM_MOST_KEYS, op,
          "a side must have at most " + std::to_string(ULTRAMEM_MOST_KEYS) + " keys");
  const std::int64_t k_row = std::min(k, n_row), k_col = std::min(k, n_col);
  require(k_col >= 1 && (k - 1) / k_col < k_row, op,
          "k is " + std::to_string(k) + ", but " + std::to_string(n_row) + " rows and " + std::to_string(n_col) +
              " columns leave only " + std::to_string(k_row * k_col) + " pairs");
}

UltramemTuckerTopK problem_of(const Dims& row, const Dims& col, const Dims& core, const Attributes& attributes) {
  UltramemTuckerTopK problem{};
  problem.tokens = row.d[0];
  problem.heads = row.d[1];
  problem.rank = row.d[2];
  problem.n_row = row.d[3];
  problem.n_col = col.d[3];
  problem.cores = core.d[0];
  problem.k = attributes[kK];
  return problem;
}

std::size_t workspace(const Dims* in, const Attributes& attributes) {
  const UltramemTuckerTopK problem = problem_of(in[kRowScores], in[kColScores], in[kCore], attributes);
  return ultramem_cuda_tucker_topk_workspace(&problem);
}

UltramemLaunch launch(const Run& run, const Attributes& attributes) {
  UltramemTuckerTopK problem =
      problem_of(run.inputs[kRowScores].dims, run.inputs[kColScores].dims, run.inputs[kCore].dims, attributes);
  problem.row_scores = run.input_data[kRowScores];
  problem.col_scores = run.input_data[kColScores];
  problem.u = run.input_data[kU];
  problem.v = run.input_data[kV];
  problem.core = run.input_data[kCore];
  problem.scores = run.output_data[kScores];
  problem.indices = static_cast<std::int64_t*>(run.output_data[kIndices]);
  problem.type = activation_type(run.inputs[kRowScores].type);
  return ultramem_cuda_tucker_topk(&problem, run.workspace, run.stream);
}

}  // namespace topk

namespace gate {

using namespace operators::sparse_gate;

void output_shapes(const DimsExprs* in, const Attributes&, DimsExprs* out, IExprBuilder&) {
  out[kGate] = dims({in[kAddresses].d[0], in[kAddresses].d[1]});
}

void check(const BoundShapes& size, const Attributes& attributes) {
  const auto activation = attributes[kActivation];
  const std::int64_t width = (activation == ULTRAMEM_SWIGLU ? 2 : 1) * size["P"];
  const std::int64_t found = numbers_in(size["W"], encoding_of(operators::kSparseGate, attributes));
  require(found == width, operators::kSparseGate,
          "input table must be " + std::to_string(width) + " wide (x is " + std::to_string(size["P"]) +
              " wide, activation " + std::to_string(activation) + "), found " + std::to_string(found));
}

UltramemLaunch launch(const Run& run, const Attributes& attributes) {
  UltramemSparseGate problem{};
  problem.table = table_of(run, kScales, encoding_of(operators::kSparseGate, attributes));
  problem.addresses = static_cast<const std::int64_t*>(run.input_data[kAddresses]);
  problem.x = run.input_data[kX];
  problem.gate = run.output_data[kGate];
  problem.type = activation_type(run.inputs[kX].type);
  problem.tokens = run.inputs[kAddresses].dims.d[0];
  problem.slots = run.inputs[kAddresses].dims.d[1];
  problem.x_width = run.inputs[kX].dims.d[1];
  problem.activation = static_cast<UltramemActivation>(attributes[kActivation]);
  return ultramem_cuda_sparse_gate(&problem, run.stream);
}

}  // namespace gate

namespace lookup {

using namespace operators::sparse_lookup;

void output_shapes(const DimsExprs* in, const Attributes& attributes, DimsExprs* out, IExprBuilder& builder) {
  const std::int64_t factor = numbers_in(attributes[kBlocks], encoding_of(operators::kSparseLookup, attributes));
  out[kOutput] = dims({in[kAddresses].d[0], product(builder, *in[kTable].d[1], factor)});
}

void check(const BoundShapes& size, const Attributes& attributes) {
  const Operator& op = operators::kSparseLookup;
  const std::int64_t width = numbers_in(size["W"], encoding_of(op, attributes)), cores = size["M"];
  require_between(op, "blocks", attributes[kBlocks], kMostBlocks);
  require(
      cores >= 1 && width % cores == 0, op,
      "the " + std::to_string(cores) + " cores of input scores must divide the table's width " + std::to_string(width));
}

UltramemLaunch launch(const Run& run, const Attributes& attributes) {
  UltramemSparseLookup problem{};
  problem.table = table_of(run, kScales, encoding_of(operators::kSparseLookup, attributes));
  problem.addresses = static_cast<const std::int64_t*>(run.input_data[kAddresses]);
  problem.scores = run.input_data[kScores];
  problem.output = run.output_data[kOutput];
  problem.type = activation_type(run.inputs[kScores].type);
  problem.tokens = run.inputs[kScores].dims.d[0];
  problem.slots = run.inputs[kScores].dims.d[1];
  problem.cores = run.inputs[kScores].dims.d[2];
  problem.blocks = attributes[kBlocks];
  return ultramem_cuda_sparse_lookup(&problem, run.tactic, run.stream);
}

}  // namespace lookup

}  // namespace

Encoding encoding_of(const Operator& op, const Attributes& attributes) {
  for (int a = 0; a < op.attribute_count; ++a) {
    if (std::strcmp(op.attributes[a].name, "encoding") == 0) {
      return static_cast<Encoding>(attributes[static_cast<std::size_t>(a)]);
    }
  }
  return Encoding::kFloat;
}

std::int32_t input_count(const Operator& op, const Attributes& attributes) {
  const bool optional = op.inputs[op.input_count - 1].optional;
  return op.input_count - (optional && encoding_of(op, attributes) == Encoding::kFloat ? 1 : 0);
}

const std::vector<Adapter>& adapters() {
  // SparseLookup's tactics are the lanes that share a row: which is fastest depends on batch and device, so the builder
  // times them.
  static const std::vector<Adapter> all = {
      {operators::kTuckerTopK, topk::output_shapes, topk::check, topk::workspace, topk::launch, {}},
      {operators::kSparseGate, gate::output_shapes, gate::check, no_workspace, gate::launch, {}},
      {operators::kSparseLookup, lookup::output_shapes, lookup::check, no_workspace, lookup::launch, {16, 32, 64, 128}},
  };
  return all;
}

}  // namespace ultramem::tensorrt
