// What tells one table from another without reading all of it.
#pragma once

#include <cstdint>
#include <string>

namespace ultramem::gpu_tables {

// SHA-256 as hex of the number of bytes (64 bits, little endian) and of 1024 runs of 4096 bytes spread evenly over
// them, the first and the last bytes among them; of all bytes where there are no more. As runtime/bundle_files.py has
// it.
std::string fingerprint(const std::byte* data, std::int64_t bytes);

}  // namespace ultramem::gpu_tables
