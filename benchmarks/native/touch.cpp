// The limit of any lookup: the same rows, one load a cache line and nothing else. And bytes to fill a table with.
#include <cstddef>
#include <cstdint>

struct Touch {
  const char* table;
  const std::int64_t* addresses;
  std::int64_t count;
  std::int64_t row_bytes;    // of whole lines
  std::int64_t bytes_ahead;  // that are asked for before they are loaded
  std::int64_t tasks;
  std::int64_t* sink;  // [tasks]
};

struct Fill {
  std::uint64_t* words;
  std::int64_t count;
  std::int64_t tasks;
};

constexpr std::int64_t kLine = 64;

// Visits kLines lines of each of some rows, then the next ones of them. At each visit a line is loaded before those of
// a later visit are asked for: requests that find the core's buffers taken hold up the loads behind them.
template <int kLines>
std::int64_t touch(const Touch& t, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kRows = 64, kVisit = kLines * kLine;
  const std::int64_t ahead = t.bytes_ahead / kVisit;
  std::int64_t sum = 0;
  for (std::int64_t first = begin; first < end; first += kRows) {
    const std::int64_t last = first + kRows < end ? first + kRows : end;
    for (std::int64_t at = 0; at < t.row_bytes; at += kVisit) {
      const std::int64_t then = at + kVisit < t.row_bytes ? at + kVisit : 0;  // where the visits after these ones are
      for (std::int64_t i = first; i < last; ++i) {
        const bool here = i + ahead < last;
        std::int64_t later = here || then == 0 ? i + ahead : i + ahead - last + first;
        if (later >= end) later = end - 1;
        const char* row = t.table + t.addresses[i] * t.row_bytes + at;
        const char* next = t.table + t.addresses[later] * t.row_bytes + (here ? at : then);
        sum ^= *reinterpret_cast<const volatile std::int64_t*>(row);
#pragma GCC unroll 16
        for (int l = 0; l < kLines; ++l) __builtin_prefetch(next + l * kLine);
#pragma GCC unroll 16
        for (int l = 1; l < kLines; ++l) sum ^= *reinterpret_cast<const volatile std::int64_t*>(row + l * kLine);
      }
    }
  }
  return sum;
}

extern "C" __attribute__((visibility("default"))) void touch_task(void* data, std::size_t index) {
  const Touch& t = *static_cast<const Touch*>(data);
  const auto task = static_cast<std::int64_t>(index);
  const std::int64_t begin = t.count * task / t.tasks, end = t.count * (task + 1) / t.tasks,
                     lines = t.row_bytes / kLine;
  const auto touched = lines == 16      ? touch<16>
                       : lines % 8 == 0 ? touch<8>
                       : lines % 6 == 0 ? touch<6>
                       : lines % 4 == 0 ? touch<4>
                       : lines % 3 == 0 ? touch<3>
                                        : touch<1>;
  t.sink[index] = touched(t, begin, end);
}

// Bits 14 and 15 of every 16 stay 0: the same bytes are numbers below 2 in every floating-point type, and distinct.
extern "C" __attribute__((visibility("default"))) void fill_task(void* data, std::size_t index) {
  const Fill& f = *static_cast<const Fill*>(data);
  const auto task = static_cast<std::int64_t>(index);
  std::uint64_t state = 88172645463325252u + index;
  for (std::int64_t i = f.count * task / f.tasks; i < f.count * (task + 1) / f.tasks; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    f.words[i] = state & 0x3fff3fff3fff3fffu;
  }
}
