#include "file_part.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

namespace ultramem {
namespace {

// One line of /proc/self/maps.
struct Mapping {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  std::int64_t offset = 0;
  std::uint64_t inode = 0;
  std::string path;

  // Whether `other` goes on where this one ends, in memory and in the file.
  bool continues_in(const Mapping& other) const {
    return other.begin == end && other.inode == inode && other.path == path &&
           other.offset == offset + static_cast<std::int64_t>(end - begin);
  }
};

bool parse(const std::string& line, Mapping* mapping) {
  std::istringstream fields(line);
  char dash = 0;
  std::string permissions, device;
  fields >> std::hex >> mapping->begin >> dash >> mapping->end >> permissions >> mapping->offset >> device >>
      std::dec >> mapping->inode;
  if (!fields) return false;
  std::getline(fields >> std::ws, mapping->path);
  return true;
}

std::int64_t changed(const struct stat& state) {
  constexpr std::int64_t kSecond = 1000000000;
  return state.st_mtim.tv_sec * kSecond + state.st_mtim.tv_nsec;
}

}  // namespace

std::optional<FilePart> file_part_of(const void* data, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data), end = begin + bytes;
  std::ifstream maps("/proc/self/maps");
  Mapping first, last, next;
  // Advice on a part of a mapping splits it: what follows on it is still the same.
  for (std::string line; last.end < end && std::getline(maps, line);) {
    if (!parse(line, &next)) continue;
    if (next.begin <= begin && begin < next.end) {
      first = last = next;
    } else if (first.end != 0) {
      if (!last.continues_in(next)) return std::nullopt;
      last = next;
    }
    next = {};
  }
  struct stat state = {};
  if (first.end == 0 || last.end < end || first.inode == 0) return std::nullopt;
  if (stat(first.path.c_str(), &state) != 0 || state.st_ino != first.inode) return std::nullopt;
  const std::int64_t offset = first.offset + static_cast<std::int64_t>(begin - first.begin);
  return FilePart{first.path, state.st_dev, state.st_ino, changed(state), offset, bytes};
}

int open_part(const FilePart& part) {
  const int file = open(part.path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat state = {};
  if (file < 0 || (fstat(file, &state) == 0 && state.st_dev == part.device && state.st_ino == part.inode &&
                   changed(state) == part.changed)) {
    return file;
  }
  close(file);
  return -1;
}

}  // namespace ultramem
