#include "fingerprint.h"

#include <vector>

#include "../runtime/sha256.h"

namespace ultramem::gpu_tables {
namespace {

constexpr std::int64_t kRuns = 1024, kRun = 4096;

}  // namespace

std::string fingerprint(const std::byte* data, std::int64_t bytes) {
  std::vector<std::byte> seen;
  for (int shift = 0; shift < 64; shift += 8) seen.push_back(static_cast<std::byte>(bytes >> shift & 255));
  if (bytes <= kRuns * kRun) {
    seen.insert(seen.end(), data, data + bytes);
  } else {
    for (std::int64_t run = 0; run < kRuns; ++run) {
      const std::byte* start =
          data + (bytes - kRun) / (kRuns - 1) * run + (bytes - kRun) % (kRuns - 1) * run / (kRuns - 1);
      seen.insert(seen.end(), start, start + kRun);
    }
  }
  return runtime::sha256_bytes(seen.data(), seen.size());
}

}  // namespace ultramem::gpu_tables
