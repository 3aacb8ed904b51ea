// Rows of a mapped table, asked for together: one read after another would wait for the disk once a row.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../cpu/row_bytes.h"
#include "../ultramem_tables.h"

namespace ultramem {
namespace {

// The pages of row `address % rows` of a table.
class RowPages {
 public:
  explicit RowPages(const UltramemTable& table)
      : table_(table),
        stride_(bytes_of(table.type, table.row_stride)),
        bytes_(bytes_of(table.type, table.width)),
        page_(static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE))) {}

  // Empty for what is no address.
  iovec of(std::int64_t address) const {
    if (address < 0 || table_.rows <= 0) return {nullptr, 0};
    const auto row =
        reinterpret_cast<std::uintptr_t>(table_.data) + static_cast<std::uintptr_t>(address % table_.rows * stride_);
    const std::uintptr_t begin = row / page_ * page_, end = row + static_cast<std::uintptr_t>(bytes_);
    return {reinterpret_cast<void*>(begin), end - begin};
  }

  // Whether the row's first page is in memory.
  bool holds(std::int64_t address) const {
    unsigned char in_memory = 1;
    const iovec pages = of(address);
    if (pages.iov_len > 0) mincore(pages.iov_base, std::min<std::size_t>(pages.iov_len, page_), &in_memory);
    return (in_memory & 1) != 0;
  }

 private:
  const UltramemTable& table_;
  std::int64_t stride_;
  std::int64_t bytes_;
  std::uintptr_t page_;
};

// This process as process_madvise wants it named; made again in a forked child. -1 where the system has no such thing.
int own_process() {
#if defined(SYS_pidfd_open)
  struct Named {
    pid_t process;
    int handle;
  };
  static std::atomic<Named> held{{0, -1}};
  Named known = held.load();
  if (known.process == getpid()) return known.handle;
  const Named own = {getpid(), static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0))};
  if (held.compare_exchange_strong(known, own)) return own.handle;
  if (own.handle >= 0) close(own.handle);  // another thread was first
  return known.handle;
#else
  return -1;
#endif
}

void will_need(const iovec* pages, std::size_t count) {
#if defined(SYS_process_madvise)
  const int process = own_process();
  // Short of the whole, the rest is asked for below: again and one by one.
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) bytes += pages[i].iov_len;
  if (process >= 0 &&
      syscall(SYS_process_madvise, process, pages, count, MADV_WILLNEED, 0) == static_cast<long>(bytes)) {
    return;
  }
#endif
  for (std::size_t i = 0; i < count; ++i) madvise(pages[i].iov_base, pages[i].iov_len, MADV_WILLNEED);
}

// Asking for pages that are there already costs about as much as reading them.
bool all_in_memory(const RowPages& rows, const std::int64_t* addresses, std::int64_t count) {
  constexpr std::int64_t kSample = 16;
  const std::int64_t step = std::max<std::int64_t>(1, count / kSample);
  for (std::int64_t i = 0; i < count; i += step) {
    if (!rows.holds(addresses[i])) return false;
  }
  return true;
}

}  // namespace
}  // namespace ultramem

extern "C" void ultramem_read_ahead(const UltramemTable* table, const int64_t* addresses, int64_t count) {
  using namespace ultramem;
  constexpr std::size_t kMost = 1024;  // of one call: IOV_MAX
  const RowPages rows(*table);
  if (all_in_memory(rows, addresses, count)) return;
  iovec pages[kMost];
  std::size_t held = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const iovec row = rows.of(addresses[i]);
    if (row.iov_len > 0) pages[held++] = row;
    if (held == kMost || (i + 1 == count && held > 0)) {
      will_need(pages, held);
      held = 0;
    }
  }
}
