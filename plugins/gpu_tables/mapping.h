// A range of a file, mapped for reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>

namespace ultramem::gpu_tables {

// The same file under all its names.
using FileId = std::tuple<std::uint64_t, std::uint64_t>;

class Mapping {
 public:
  // Throws Failure MISSING where the file cannot be read, DAMAGED where it ends before the range.
  Mapping(const std::string& file, std::int64_t offset, std::int64_t bytes);
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  const std::byte* data() const { return static_cast<const std::byte*>(start_) + lead_; }
  FileId file() const { return file_; }

  // The whole pages around the range, and how far into them it begins.
  void* pages() const { return start_; }
  std::size_t page_bytes() const { return length_; }
  std::size_t lead() const { return lead_; }

  // Let go of the pages of [begin, end) of the range; they are read again where they are needed again.
  void release(std::int64_t begin, std::int64_t end) const;

 private:
  void* start_ = nullptr;
  std::size_t length_, lead_;
  FileId file_;
};

}  // namespace ultramem::gpu_tables
