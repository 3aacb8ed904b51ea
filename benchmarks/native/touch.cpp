// The limit of any lookup: the same rows, one load a cache line and nothing else. And bytes to fill a table with.
#include <cstddef>
#include <cstdint>

struct Touch {
  const char* table;
  const std::int64_t* addresses;
  std::int64_t count;
  std::int64_t row_bytes;
  std::int64_t rows_ahead;  // requested before they are loaded; 0 leaves it to the processor
  std::int64_t tasks;
  std::int64_t* sink;  // [tasks]
};

struct Fill {
  std::uint64_t* words;
  std::int64_t count;
  std::int64_t tasks;
};

constexpr std::int64_t kLine = 64;

extern "C" __attribute__((visibility("default"))) void touch_task(void* data, std::size_t index) {
  const Touch& t = *static_cast<const Touch*>(data);
  const auto task = static_cast<std::int64_t>(index);
  const std::int64_t begin = t.count * task / t.tasks, end = t.count * (task + 1) / t.tasks;
  std::int64_t sum = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    if (t.rows_ahead > 0 && i + t.rows_ahead < end) {
      const char* next = t.table + t.addresses[i + t.rows_ahead] * t.row_bytes;
      for (std::int64_t b = 0; b < t.row_bytes; b += kLine) __builtin_prefetch(next + b);
    }
    const char* row = t.table + t.addresses[i] * t.row_bytes;
    for (std::int64_t b = 0; b < t.row_bytes; b += kLine) sum ^= *reinterpret_cast<const volatile std::int64_t*>(row + b);
  }
  t.sink[index] = sum;
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
