// SHA-256 (FIPS 180-4) of a file.
#pragma once

#include <string>

namespace ultramem::runtime {

// As 64 hexadecimal digits. Throws Failure MISSING where the file cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace ultramem::runtime
