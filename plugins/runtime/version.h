// Versions such as "1.20.1", "0.1.0.dev3" or "1.31.1+cpu": the leading numbers count, missing ones are 0.
#pragma once

#include <array>
#include <string>

namespace ultramem::runtime {

using Version = std::array<int, 3>;

inline Version parse_version(const std::string& text) {
  Version version{};
  std::size_t at = 0;
  for (int& part : version) {
    while (at < text.size() && text[at] >= '0' && text[at] <= '9' && part < 100'000'000) {
      part = 10 * part + (text[at++] - '0');
    }
    if (at >= text.size() || text[at] != '.') break;
    ++at;
  }
  return version;
}

inline bool at_least(const std::string& found, const std::string& required) {
  return parse_version(found) >= parse_version(required);
}

}  // namespace ultramem::runtime
