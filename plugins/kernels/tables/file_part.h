// Which part of which file some mapped memory is.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace ultramem {

struct FilePart {
  std::string path;
  dev_t device;
  ino_t inode;
  std::int64_t changed;  // nanoseconds: a file that was written to is another one
  std::int64_t offset;
  std::size_t bytes;

  bool operator<(const FilePart& other) const { return identity() < other.identity(); }

 private:
  std::tuple<dev_t, ino_t, std::int64_t, std::int64_t, std::size_t> identity() const {
    return {device, inode, changed, offset, bytes};
  }
};

// None where [data, data + bytes) is not one stretch of a mapped file that still has its name.
std::optional<FilePart> file_part_of(const void* data, std::size_t bytes);

// A descriptor of that very file, or -1.
int open_part(const FilePart& part);

}  // namespace ultramem
