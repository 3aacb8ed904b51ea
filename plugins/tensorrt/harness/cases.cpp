#include "cases.h"

#include <map>

namespace ultramem::harness {
namespace {

constexpr auto kInt32 = nvinfer1::PluginFieldType::kINT32;
constexpr auto kFloat = nvinfer1::PluginFieldType::kFLOAT32;

}  // namespace

const std::vector<DataType>& types_of(const std::string& kind) {
  static const std::map<std::string, std::vector<DataType>> kinds = {
      {"activation", {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}},
      {"table", {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}},
      {"index", {DataType::kINT64}},
  };
  return kinds.at(kind);
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"TuckerTopK",
       {{"k", 5}},
       {{}, {{"k", 0}}, {{"k", -3}}, {{"k", 5, kFloat}}, {{"k", 5, kInt32, 2}}, {{"k", 5}, {"blocks", 1}}},
       {{{"T", "H", "R", "n_row"}, "activation"},
        {{"T", "H", "R", "n_col"}, "activation"},
        {{"H", "R"}, "activation"},
        {{"H", "R"}, "activation"},
        {{"M", "H", "R", "R"}, "activation"}},
       {{{"T", "H*k", "M"}, "activation"}, {{"T", "H*k"}, "index"}},
       {{"T", 3}, {"H", 2}, {"R", 2}, {"n_row", 7}, {"n_col", 4}, {"M", 3}, {"k", 5}},
       {{{"n_row", 1}}, {{"n_col", 0}}, {{"M", 0}}},
       0},
      {"SparseGate",
       {{"activation", 3}},
       {{{"activation", 4}}, {{"activation", -1}}, {{"activation", 1, kFloat}}, {{"activations", 1}}},
       {{{"N", "W"}, "table"}, {{"T", "K"}, "index"}, {{"T", "P"}, "activation"}},
       {{{"T", "K"}, "activation"}},
       {{"T", 3}, {"K", 4}, {"N", 9}, {"W", 16}, {"P", 8}},
       {{{"W", 8}}, {{"P", 16}}},
       0},
      {"SparseLookup",
       {{"blocks", 4}},
       {{{"blocks", 0}}, {{"blocks", 4, kFloat}}, {{"block", 4}}},
       {{{"N", "D"}, "table"}, {{"T", "K"}, "index"}, {{"T", "K", "M"}, "activation"}},
       {{{"T", "D*blocks"}, "activation"}},
       {{"T", 3}, {"K", 4}, {"N", 9}, {"D", 24}, {"M", 2}, {"blocks", 4}},
       {{{"M", 5}}, {{"M", 0}}},
       4},
  };
  return all;
}

}  // namespace ultramem::harness
