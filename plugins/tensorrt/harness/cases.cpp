#include "cases.h"

#include <map>

namespace ultramem::harness {
namespace {

constexpr auto kInt32 = nvinfer1::PluginFieldType::kINT32;
constexpr auto kFloat = nvinfer1::PluginFieldType::kFLOAT32;
const auto text = text_field;
const std::string kGoodText = "float32 9x16 0 ab model";

const Case kRetrieval = {"TuckerTopK",
                         {{"k", 5}},
                         {},
                         {{},
                          {{"k", 0}},
                          {{"k", -3}},
                          {{"k", 5, kFloat}},
                          {{"k", 5, kInt32, 2}},
                          {{"k", 5}, {"blocks", 1}},
                          {{"k", 5}, text("table", kGoodText)}},
                         {{{"T", "H", "R", "n_row"}, "activation"},
                          {{"T", "H", "R", "n_col"}, "activation"},
                          {{"H", "R"}, "activation"},
                          {{"H", "R"}, "activation"},
                          {{"M", "H", "R", "R"}, "activation"}},
                         {{{"T", "H*k", "M"}, "activation"}, {{"T", "H*k"}, "index"}},
                         {{"T", 3}, {"H", 2}, {"R", 2}, {"n_row", 7}, {"n_col", 4}, {"M", 3}, {"k", 5}},
                         {{{"n_row", 1}}, {{"n_col", 0}}, {{"M", 0}}},
                         0};

const Case kGate = {"SparseGate",
                    {{"activation", 3}, {"encoding", 0}},
                    {"table", "scales"},
                    {{{"activation", 4}},
                     {{"activation", -1}},
                     {{"activation", 1, kFloat}},
                     {{"activations", 1}},
                     {{"encoding", 4}},
                     {{"table", 1}},
                     {text("table", "float32 9x16")},
                     {text("table", "float32 9x16x2 0 ab model")},
                     {text("table", "float32 9x16 0 ab ../model")},
                     {text("table", "float32 9x16 0 ab /model")},
                     {text("table", "float64 9x16 0 ab model")},
                     {text("table", "int8 9x16 0 ab model")},
                     {text("table", kGoodText), text("scales", "float32 9 0 ab model")},
                     {text("scales", "float32 9 0 ab model")},
                     {{"encoding", 1}, text("table", "int8 9x16 0 ab model")},
                     {text("table", "float32 9999999999x9999999999 0 ab m")}},
                    {{{"N", "W"}, "table"}, {{"T", "K"}, "index"}, {{"T", "P"}, "activation"}},
                    {{{"T", "K"}, "activation"}},
                    {{"T", 3}, {"K", 4}, {"N", 9}, {"W", 16}, {"P", 8}},
                    {{{"W", 8}}, {{"P", 16}}},
                    0};

const Case kLookup = {"SparseLookup",
                      {{"blocks", 4}, {"encoding", 0}},
                      {"table", "scales"},
                      {{{"blocks", 0}}, {{"blocks", 4, kFloat}}, {{"block", 4}}, {{"encoding", -1}}},
                      {{{"N", "W"}, "table"}, {{"T", "K"}, "index"}, {{"T", "K", "M"}, "activation"}},
                      {{{"T", "W*blocks"}, "activation"}},
                      {{"T", 3}, {"K", 4}, {"N", 9}, {"W", 24}, {"M", 2}, {"blocks", 4}},
                      {{{"M", 5}}, {{"M", 0}}},
                      4};

// The same node over a table that is stored in another way, with its scales.
Case quantised(Case c, std::int64_t encoding, const std::string& table) {
  c.fields.back().value = encoding;
  c.inputs.front().kind = table;
  c.inputs.push_back({{"N"}, "scale"});
  return c;
}

// ... with two numbers in an element.
Case packed(Case c) {
  c = quantised(c, 2, "int4 table");
  if (c.name == "SparseLookup") c.outputs.front().dims.back() += "*2";
  if (c.name == "SparseGate") {
    c.sizes["W"] = 8;
    c.wrong_sizes = {{{"W", 16}}};
  }
  return c;
}

}  // namespace

Field text_field(const std::string& name, const std::string& text) {
  return {name, 0, nvinfer1::PluginFieldType::kCHAR, static_cast<std::int32_t>(text.size()), text};
}

const std::vector<DataType>& types_of(const std::string& kind) {
  static const std::map<std::string, std::vector<DataType>> kinds = {
      {"activation", {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}},
      {"table", {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}},
      {"int8 table", {DataType::kINT8}},
      {"int4 table", {DataType::kINT8}},
      {"float8 table", {DataType::kINT8, DataType::kFP8}},
      {"scale", {DataType::kFLOAT}},
      {"index", {DataType::kINT64}},
  };
  return kinds.at(kind);
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {kRetrieval,
                                        kGate,
                                        quantised(kGate, 1, "int8 table"),
                                        packed(kGate),
                                        quantised(kGate, 3, "float8 table"),
                                        kLookup,
                                        quantised(kLookup, 1, "int8 table"),
                                        packed(kLookup),
                                        quantised(kLookup, 3, "float8 table")};
  return all;
}

}  // namespace ultramem::harness
