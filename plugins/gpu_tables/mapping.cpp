#include "mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "../runtime/failure.h"

namespace ultramem::gpu_tables {
namespace {

using runtime::require;

std::size_t page_size() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

class Descriptor {
 public:
  explicit Descriptor(const std::string& file) : value(open(file.c_str(), O_RDONLY | O_CLOEXEC)) {
    require(value >= 0, ULTRAMEM_CODE_MISSING, file + ": " + std::strerror(errno) + "; copy the whole model directory");
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(value); }
  const int value;
};

}  // namespace

Mapping::Mapping(const std::string& file, std::int64_t offset, std::int64_t bytes) {
  const Descriptor descriptor(file);
  struct stat state{};
  require(fstat(descriptor.value, &state) == 0, ULTRAMEM_CODE_MISSING, file + ": " + std::strerror(errno));
  require(offset >= 0 && bytes > 0 && bytes <= state.st_size - offset, ULTRAMEM_CODE_DAMAGED,
          file + ": " + std::to_string(state.st_size) + " bytes, a table is expected at " + std::to_string(offset) +
              ", " + std::to_string(bytes) + " bytes long; copy the file again");
  file_ = {state.st_dev, state.st_ino};
  lead_ = static_cast<std::size_t>(offset) % page_size();
  length_ = lead_ + static_cast<std::size_t>(bytes);
  void* start =
      mmap(nullptr, length_, PROT_READ, MAP_SHARED, descriptor.value, offset - static_cast<std::int64_t>(lead_));
  require(start != MAP_FAILED, ULTRAMEM_CODE_RUNTIME, file + ": cannot be mapped: " + std::strerror(errno));
  start_ = start;
}

Mapping::~Mapping() { munmap(start_, length_); }

void Mapping::release(std::int64_t begin, std::int64_t end) const {
  // Whole pages alone: a neighbour's bytes on a page at an end may still be wanted.
  const std::size_t page = page_size();
  const std::size_t first = (lead_ + static_cast<std::size_t>(begin) + page - 1) / page * page;
  const std::size_t last = std::min(length_, lead_ + static_cast<std::size_t>(end)) / page * page;
  if (first < last) madvise(static_cast<std::byte*>(start_) + first, last - first, MADV_DONTNEED);
}

}  // namespace ultramem::gpu_tables
