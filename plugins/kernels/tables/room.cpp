#include "room.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

namespace ultramem {
namespace {

// The number after `key` at the start of a line of a file; `fallback` where there is none.
std::size_t number_in(const std::string& file, const std::string& key, std::size_t fallback) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    std::istringstream fields(line.substr(std::min(key.size(), line.size())));
    std::size_t number = 0;
    if (line.rfind(key, 0) == 0 && fields >> number) return number;
  }
  return fallback;
}

// What the control group (version 2) leaves; its limit is "max" where there is none. Cached files can be given up.
std::size_t left_of_group() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  std::getline(groups, line);
  if (line.rfind("0::", 0) != 0) return SIZE_MAX;
  const std::string folder = "/sys/fs/cgroup" + line.substr(3) + "/";
  const std::size_t limit = number_in(folder + "memory.max", "", SIZE_MAX);
  if (limit == SIZE_MAX) return SIZE_MAX;
  const std::size_t used = number_in(folder + "memory.current", "", 0);
  const std::size_t cached = number_in(folder + "memory.stat", "inactive_file ", 0);
  return limit + cached > used ? limit + cached - used : 0;
}

}  // namespace

std::size_t available_memory() {
  constexpr std::size_t kKibibyte = 1024;
  const std::size_t machine = number_in("/proc/meminfo", "MemAvailable:", 0) * kKibibyte;
  return std::min(machine, left_of_group());
}

}  // namespace ultramem
