#include "values.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

namespace ultramem::harness {
namespace {

// Float32 sums of the few dozen terms that a case has, beside float64; scores and sums are of the order of 1 to 100.
constexpr double kTolerance = 2e-4;

template <typename T>
void append(std::vector<std::byte>& bytes, T value) {
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), begin, begin + sizeof value);
}

double decode_float8(unsigned byte) {
  const int exponent = static_cast<int>(byte >> 3 & 15u), mantissa = static_cast<int>(byte & 7u);
  const double size = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return byte & 0x80u ? -size : size;
}

// Draws tensors of every kind, always the same ones.
class Source {
 public:
  Value draw(const std::string& kind, std::int64_t count, std::int64_t addresses) {
    Value value;
    for (std::int64_t i = 0; i < count; ++i) {
      if (kind == "index") {
        value.indices.push_back(std::uniform_int_distribution<std::int64_t>(0, addresses - 1)(generator_));
        append(value.bytes, value.indices.back());
      } else if (kind == "activation" || kind == "table" || kind == "scale") {
        const float number = std::normal_distribution<float>()(generator_);
        value.numbers.push_back(number);
        append(value.bytes, number);
      } else {
        append_codes(kind, value);
      }
    }
    return value;
  }

 private:
  // One byte of a quantised table.
  void append_codes(const std::string& kind, Value& value) {
    unsigned byte = std::uniform_int_distribution<unsigned>(0, 255)(generator_);
    if (kind == "float8 table") {
      byte &= 0xbfu;  // below 2, and never NaN
      value.numbers.push_back(decode_float8(byte));
    } else if (kind == "int8 table") {
      byte &= 0x8fu;
      value.numbers.push_back(static_cast<std::int8_t>(static_cast<std::uint8_t>(byte)) / 1.0);
    } else {
      value.numbers.push_back(static_cast<int>(byte & 15u) - 8);
      value.numbers.push_back(static_cast<int>(byte >> 4) - 8);
    }
    append(value.bytes, static_cast<std::uint8_t>(byte));
  }

  std::mt19937 generator_{5};
};

std::int64_t field(const Case& c, const std::string& name) {
  for (const Field& f : c.fields) {
    if (f.name == name) return f.value;
  }
  return 0;
}

}  // namespace

std::int64_t count_of(const nvinfer1::Dims& dims) {
  std::int64_t count = 1;
  for (std::int32_t d = 0; d < dims.nbDims; ++d) count *= dims.d[d];
  return count;
}

std::vector<Value> draw_inputs(const Case& c, const Tensors& tensors) {
  Source source;
  std::vector<Value> values;
  for (std::size_t i = 0; i < c.inputs.size(); ++i) {
    const std::int64_t addresses =
        c.sizes.count("N") == 0 ? 1 : c.sizes.at("N") * std::max<std::int64_t>(1, field(c, "blocks"));
    values.push_back(source.draw(c.inputs[i].kind, count_of(tensors.all[i].desc.dims), addresses));
  }
  if (c.inputs.back().kind == "scale") {  // the formula's table is the decoded one
    Numbers& table = values.front().numbers;
    const std::size_t width = table.size() / values.back().numbers.size();
    for (std::size_t i = 0; i < table.size(); ++i) table[i] *= values.back().numbers[i / width];
  }
  return values;
}

std::vector<Numbers> expected_outputs(const Case& c, const std::vector<Value>& in) {
  const auto size = [&](const char* name) { return c.sizes.at(name); };
  if (c.name == "TuckerTopK") {
    const TopK sizes = {size("H"), size("R"), size("n_row"), size("n_col"), size("M"), field(c, "k")};
    const Retrieved all = tucker_topk(sizes, in[0].numbers, in[1].numbers, in[2].numbers, in[3].numbers, in[4].numbers);
    return {all.scores, Numbers(all.indices.begin(), all.indices.end())};
  }
  if (c.name == "SparseGate") {
    return {sparse_gate_swiglu(size("N"), size("P"), size("K"), in[0].numbers, in[1].indices, in[2].numbers)};
  }
  const auto width = static_cast<std::int64_t>(in[0].numbers.size()) / size("N");
  const Lookup sizes = {size("N"), width, size("K"), size("M"), field(c, "blocks")};
  return {sparse_lookup(sizes, in[0].numbers, in[1].indices, in[2].numbers)};
}

Numbers numbers_of(const std::vector<std::byte>& bytes, bool indices) {
  Numbers numbers;
  for (std::size_t at = 0; at < bytes.size(); at += indices ? 8 : 4) {
    std::int64_t index = 0;
    float number = 0;
    std::memcpy(indices ? static_cast<void*>(&index) : &number, bytes.data() + at, indices ? 8 : 4);
    numbers.push_back(indices ? static_cast<double>(index) : number);
  }
  return numbers;
}

bool are_close(const Numbers& found, const Numbers& wanted) {
  if (found.size() != wanted.size()) return false;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!(std::abs(found[i] - wanted[i]) <= kTolerance * (1 + std::abs(wanted[i])))) return false;
  }
  return true;
}

}  // namespace ultramem::harness
