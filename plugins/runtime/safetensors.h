// Headers of safetensors files: an unsigned 64-bit length, that many bytes of JSON, then the tensors.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ultramem::runtime {

struct Tensor {
  std::string dtype;  // as numpy and torch call it
  std::vector<std::int64_t> shape;
  std::int64_t offset, bytes;  // in the file
};

// Every tensor of the file `name`, whose first bytes are `head` and whose size is `file_size`. Throws Failure DAMAGED
// for a header that is cut, is no JSON, or points outside the file.
std::map<std::string, Tensor> parse_safetensors(const std::string& head, std::int64_t file_size,
                                                const std::string& name);

std::map<std::string, Tensor> read_safetensors(const std::string& path);

}  // namespace ultramem::runtime
