#include "safetensors.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "failure.h"

namespace ultramem::runtime {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kMostHeader = 100'000'000;  // as the safetensors library has it

const std::map<std::string, std::string>& names() {
  static const auto& found = *new std::map<std::string, std::string>{{"BOOL", "bool"},
                                                                     {"U8", "uint8"},
                                                                     {"I8", "int8"},
                                                                     {"U16", "uint16"},
                                                                     {"I16", "int16"},
                                                                     {"F16", "float16"},
                                                                     {"BF16", "bfloat16"},
                                                                     {"U32", "uint32"},
                                                                     {"I32", "int32"},
                                                                     {"F32", "float32"},
                                                                     {"U64", "uint64"},
                                                                     {"I64", "int64"},
                                                                     {"F64", "float64"},
                                                                     {"F8_E4M3", "float8_e4m3fn"},
                                                                     {"F8_E5M2", "float8_e5m2"}};
  return found;
}

std::uint64_t length_of(const std::string& head) {
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(head[i]);
  return length;
}

bool is_count(const Json& json) {
  return json.is_number_unsigned() && json.get<std::uint64_t>() < std::uint64_t{1} << 62;
}

Tensor tensor_of(const Json& entry, std::int64_t data, std::int64_t file_size, const std::string& where) {
  const auto damaged = [&](const char* what) {
    fail(ULTRAMEM_CODE_DAMAGED, where + ": " + what + "; copy the file again");
  };
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets")) {
    damaged("lacks dtype, shape or data_offsets");
  }
  const Json &dtype = entry["dtype"], &shape = entry["shape"], &span = entry["data_offsets"];
  if (!dtype.is_string() || !shape.is_array() || !span.is_array() || span.size() != 2) damaged("is malformed");
  if (!is_count(span[0]) || !is_count(span[1])) damaged("has no valid data_offsets");
  const auto begin = span[0].get<std::int64_t>(), end = span[1].get<std::int64_t>();
  if (end < begin || end > file_size - data) damaged("lies outside the file: the file is truncated");
  Tensor tensor{dtype.get<std::string>(), {}, data + begin, end - begin};
  if (const auto known = names().find(tensor.dtype); known != names().end()) tensor.dtype = known->second;
  for (const Json& size : shape) {
    if (!is_count(size)) damaged("has no valid shape");
    tensor.shape.push_back(size.get<std::int64_t>());
  }
  return tensor;
}

}  // namespace

std::map<std::string, Tensor> parse_safetensors(const std::string& head, std::int64_t file_size,
                                                const std::string& name) {
  const auto held = static_cast<std::int64_t>(head.size());
  const std::uint64_t length = held < kLengthBytes ? 0 : length_of(head);
  require(length > 0 && length <= kMostHeader && static_cast<std::int64_t>(length) <= held - kLengthBytes,
          ULTRAMEM_CODE_DAMAGED, name + ": its safetensors header is cut; copy the file again");
  const auto data = kLengthBytes + static_cast<std::int64_t>(length);
  const Json header = Json::parse(head.begin() + kLengthBytes, head.begin() + data, nullptr, false);
  require(header.is_object(), ULTRAMEM_CODE_DAMAGED,
          name + ": its safetensors header is no JSON object; copy it again");
  std::map<std::string, Tensor> tensors;
  for (const auto& [key, entry] : header.items()) {
    if (key != "__metadata__") tensors[key] = tensor_of(entry, data, file_size, name + ": " + key);
  }
  return tensors;
}

std::map<std::string, Tensor> read_safetensors(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::error_code error;
  const auto size = static_cast<std::int64_t>(std::filesystem::file_size(path, error));
  require(stream.good() && !error, ULTRAMEM_CODE_MISSING, path + ": cannot be read; copy the whole bundle");
  std::string head(kLengthBytes, '\0');
  stream.read(head.data(), kLengthBytes);
  const std::uint64_t length = stream.gcount() == kLengthBytes ? length_of(head) : 0;
  if (length <= kMostHeader && static_cast<std::int64_t>(length) <= size - kLengthBytes) {
    head.resize(static_cast<std::size_t>(kLengthBytes) + length);
    stream.read(head.data() + kLengthBytes, static_cast<std::streamsize>(length));
  }
  return parse_safetensors(head, size, path);
}

}  // namespace ultramem::runtime
