// Tables in memory that the GPU reads: each is loaded once a process, however many engines and contexts share it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace ultramem::gpu_tables {

// Device memory; or host memory that the device reads in place, for tables larger than the GPU's; or device memory
// where it has room, else host memory.
enum class Place { kAuto, kDevice, kHost };

// What ULTRAMEM_GPU_TABLES says: auto (or nothing), device, host. Throws Failure INVALID for anything else.
Place place_asked();

// Where a table's bytes lie, and what they must be: `fingerprint` as fingerprint.h has it.
struct Source {
  std::string file;
  std::int64_t offset, bytes;
  std::string fingerprint;
};

// A table on the device that was current when it was loaded, until the last one who holds it lets go.
struct Resident {
  const void* data;  // an address of the device's
  std::int64_t bytes;
  Place place;    // kDevice or kHost
  bool in_place;  // the file's own pages, pinned; else a copy
  std::string fingerprint;
  std::shared_ptr<const void> owner;
};

// Throws Failure: MISSING or DAMAGED that names the file, RUNTIME with CUDA's own error.
std::shared_ptr<const Resident> acquire(const Source& source, Place place);

}  // namespace ultramem::gpu_tables
