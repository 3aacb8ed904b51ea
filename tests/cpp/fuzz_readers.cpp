// Any bytes at all as a manifest, or as the head of a safetensors file: an error or a result, nothing else.
#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/failure.h"
#include "runtime/manifest.h"
#include "runtime/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ultramem::runtime;
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 2 == 0) {
      parse_manifest(bytes);
    } else {
      const auto length = static_cast<std::int64_t>(bytes.size());
      for (const auto& [name, tensor] : parse_safetensors(bytes, length, "file")) {
        if (tensor.offset < 0 || tensor.bytes < 0 || tensor.offset + tensor.bytes > length) __builtin_trap();
      }
    }
  } catch (const Failure&) {
    // An answer, as a result is one.
  }
  return 0;
}
