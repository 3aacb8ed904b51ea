// Where a plugin's tensors lie while it runs.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace ultramem::harness {

class Memory {
 public:
  virtual ~Memory() = default;
  // A copy of the bytes where the kernels read and write, for as long as this object lives. Throws where it fails.
  virtual void* place(const std::vector<std::byte>& bytes) = 0;
  // What lies there now, once the kernels are done.
  virtual std::vector<std::byte> read(const void* from, std::size_t count) = 0;
};

// The host's own, for plugins whose kernels run there.
std::unique_ptr<Memory> host_memory();

// The GPU's. Null where there is none.
std::unique_ptr<Memory> device_memory();

}  // namespace ultramem::harness
