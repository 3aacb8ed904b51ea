#include "problems.h"

#include <algorithm>
#include <string>
#include <vector>

#include "../operators.h"

namespace ultramem::onnxruntime {
namespace {

// Far beyond any model, and small enough that no product of sizes overflows.
constexpr std::int64_t kMostBlocks = 1 << 20;

std::vector<Shape> shapes_of(const std::vector<Input>& inputs) {
  std::vector<Shape> shapes;
  shapes.reserve(inputs.size());
  for (const Input& input : inputs) shapes.push_back(input.shape);
  return shapes;
}

// Of an activation: the description allows nothing else there.
UltramemType kernel_type(ElementType type) {
  return type == ElementType::kFloat32 ? ULTRAMEM_FLOAT32 : ULTRAMEM_FLOAT16;
}

// The encodings of every operator with a table, in the order of the description.
enum class Encoding : std::int64_t { kFloat, kInt8, kInt4, kFloat8 };
static_assert(static_cast<int>(Encoding::kFloat8) ==
                  static_cast<int>(operators::sparse_lookup::Encoding::kFloat8E4m3) &&
              static_cast<int>(Encoding::kFloat8) == static_cast<int>(operators::sparse_gate::Encoding::kFloat8E4m3));

struct StoredType {
  ElementType element;
  Encoding encoding;
  UltramemType type;
};

constexpr StoredType kStoredTypes[] = {
    {ElementType::kFloat32, Encoding::kFloat, ULTRAMEM_FLOAT32},
    {ElementType::kFloat16, Encoding::kFloat, ULTRAMEM_FLOAT16},
    {ElementType::kBFloat16, Encoding::kFloat, ULTRAMEM_BFLOAT16},
    {ElementType::kInt8, Encoding::kInt8, ULTRAMEM_INT8},
    {ElementType::kUint8, Encoding::kInt4, ULTRAMEM_INT4},
    {ElementType::kUint8, Encoding::kFloat8, ULTRAMEM_FLOAT8_E4M3},
};

UltramemType stored_type(const Operator& op, ElementType element, std::int64_t encoding) {
  for (const StoredType& stored : kStoredTypes) {
    if (stored.element == element && static_cast<std::int64_t>(stored.encoding) == encoding) return stored.type;
  }
  throw BadInput(std::string(op.name) + ": input table of ONNX element type " +
                 std::to_string(static_cast<int>(element)) + " does not go with encoding " + std::to_string(encoding));
}

// The table of an operator whose scales are input `scales`; they must be there exactly where the rows are quantised.
UltramemTable table_of(const Operator& op, const std::vector<Input>& inputs, std::size_t scales,
                       std::int64_t encoding) {
  const Input& table = inputs[0];
  const bool scaled = encoding != static_cast<std::int64_t>(Encoding::kFloat);
  require((inputs.size() > scales) == scaled, op, "input scales must be ", scaled ? "given" : "absent",
          " for encoding ", encoding);
  const UltramemType type = stored_type(op, table.type, encoding);
  const std::int64_t width = table.shape[1] * (type == ULTRAMEM_INT4 ? 2 : 1);
  const float* scale = scaled ? static_cast<const float*>(inputs[scales].data) : nullptr;
  return {table.data, type, table.shape[0], width, width, scale, table.read_ahead ? 1 : 0};
}

void require_between(const Context& context, const char* attribute, std::int64_t value, std::int64_t most) {
  require(1 <= value && value <= most, context.op(), attribute, " must be in [1, ", most, "], found ", value);
}

}  // namespace

UltramemSparseLookup lookup_problem(const Context& context, const std::int64_t* attributes) {
  using namespace operators::sparse_lookup;
  const std::vector<Input> inputs = context.inputs();
  const BoundShapes size(context.op(), shapes_of(inputs));
  const UltramemTable table = table_of(context.op(), inputs, kScales, attributes[kEncoding]);
  const std::int64_t blocks = attributes[kBlocks], width = table.width, cores = size["M"];
  require_between(context, "blocks", blocks, kMostBlocks);
  require(cores >= 1 && width % cores == 0, context.op(), "the ", cores,
          " cores of input scores must divide the table's width ", width);

  UltramemSparseLookup problem{};
  problem.table = table;
  problem.addresses = static_cast<const std::int64_t*>(inputs[kAddresses].data);
  problem.scores = inputs[kScores].data;
  problem.output = context.output(kOutput, {size["T"], blocks * width});
  problem.type = kernel_type(inputs[kScores].type);
  problem.tokens = size["T"];
  problem.slots = size["K"];
  problem.cores = cores;
  problem.blocks = blocks;
  return problem;
}

UltramemSparseGate gate_problem(const Context& context, const std::int64_t* attributes) {
  using namespace operators::sparse_gate;
  static_assert(
      static_cast<int>(Activation::kGelu) == ULTRAMEM_GELU && static_cast<int>(Activation::kSilu) == ULTRAMEM_SILU &&
      static_cast<int>(Activation::kSwiglu) == ULTRAMEM_SWIGLU && static_cast<int>(Activation::kNone) == ULTRAMEM_NONE);
  const std::vector<Input> inputs = context.inputs();
  const BoundShapes size(context.op(), shapes_of(inputs));
  const UltramemTable table = table_of(context.op(), inputs, kScales, attributes[kEncoding]);
  const auto activation = static_cast<UltramemActivation>(attributes[kActivation]);
  const std::int64_t width = (activation == ULTRAMEM_SWIGLU ? 2 : 1) * size["P"];
  require(table.width == width, context.op(), "input table must be ", width, " wide (x is ", size["P"],
          " wide, activation ", activation, "), found ", table.width);

  UltramemSparseGate problem{};
  problem.table = table;
  problem.addresses = static_cast<const std::int64_t*>(inputs[kAddresses].data);
  problem.x = inputs[kX].data;
  problem.gate = context.output(kGate, {size["T"], size["K"]});
  problem.type = kernel_type(inputs[kX].type);
  problem.tokens = size["T"];
  problem.slots = size["K"];
  problem.x_width = size["P"];
  problem.activation = activation;
  return problem;
}

UltramemTuckerTopK topk_problem(const Context& context, const std::int64_t* attributes) {
  using namespace operators::tucker_top_k;
  const std::vector<Input> inputs = context.inputs();
  const BoundShapes size(context.op(), shapes_of(inputs));
  const std::int64_t k = attributes[kK], n_row = size["n_row"], n_col = size["n_col"];
  require_between(context, "k", k, ULTRAMEM_MOST_KEPT);
  require(size["R"] >= 1 && size["M"] >= 1, context.op(), "input core must have at least one core and one rank");
  require(std::max(n_row, n_col) <= ULTRAMEM_MOST_KEYS, context.op(), "a side must have at most ", ULTRAMEM_MOST_KEYS,
          " keys");
  const std::int64_t k_row = std::min(k, n_row), k_col = std::min(k, n_col);
  require(k_col >= 1 && (k - 1) / k_col < k_row, context.op(), "k is ", k, ", but ", n_row, " rows and ", n_col,
          " columns leave only ", k_row * k_col, " pairs");

  UltramemTuckerTopK problem{};
  problem.row_scores = inputs[kRowScores].data;
  problem.col_scores = inputs[kColScores].data;
  problem.u = inputs[kU].data;
  problem.v = inputs[kV].data;
  problem.core = inputs[kCore].data;
  problem.scores = context.output(kScores, {size["T"], size["H"] * k, size["M"]});
  problem.indices = static_cast<std::int64_t*>(context.output(kIndices, {size["T"], size["H"] * k}));
  problem.type = kernel_type(inputs[kRowScores].type);
  problem.tokens = size["T"];
  problem.heads = size["H"];
  problem.rank = size["R"];
  problem.n_row = n_row;
  problem.n_col = n_col;
  problem.cores = size["M"];
  problem.k = k;
  return problem;
}

}  // namespace ultramem::onnxruntime
