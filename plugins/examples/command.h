// What the smallest programs share: PROMPT as token ids, and the last line that they print.
#pragma once

#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

// "504,351,4814" as ids; nothing where the text is no such list.
inline std::vector<std::int64_t> listed_ids(const std::string& text) {
  if (text.find_first_not_of("0123456789,") != std::string::npos) return {};
  std::vector<std::int64_t> ids;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) ids.push_back(std::strtoll(part.c_str(), nullptr, 10));
  return ids;
}

inline void print_metrics(double tokens_per_second, double first_token_ms) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("\n{\"tokens_per_second\": %.2f, \"time_to_first_token_ms\": %.2f, \"rss_mb\": %.1f}\n",
              tokens_per_second, first_token_ms, static_cast<double>(usage.ru_maxrss) / 1024);
}
