// SHA-256 (FIPS 180-4) of files and of bytes, as 64 hexadecimal digits.
#pragma once

#include <cstddef>
#include <string>

namespace ultramem::runtime {

std::string sha256_bytes(const void* data, std::size_t count);

// Throws Failure MISSING where the file cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace ultramem::runtime
