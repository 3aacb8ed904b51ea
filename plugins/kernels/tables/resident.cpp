#include "resident.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <thread>
#include <vector>

namespace ultramem {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

bool read_whole(int file, std::int64_t offset, std::size_t bytes, char* to) {
  while (bytes > 0) {
    const ssize_t count = pread(file, to, bytes, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    offset += count, to += count, bytes -= static_cast<std::size_t>(count);
  }
  return true;
}

// Each thread faults in and fills chunks of its own.
bool read_in_parallel(int file, const FilePart& part, char* to) {
  constexpr std::size_t kChunk = 16 * kHugePage;
  constexpr unsigned kMostThreads = 16;
  std::atomic<std::size_t> next{0};
  std::atomic<bool> fine{true};
  const auto work = [&] {
    for (std::size_t at = next.fetch_add(kChunk); at < part.bytes && fine; at = next.fetch_add(kChunk)) {
      const std::size_t bytes = std::min(kChunk, part.bytes - at);
      if (!read_whole(file, part.offset + static_cast<std::int64_t>(at), bytes, to + at)) fine = false;
    }
  };
  std::vector<std::thread> threads;
  const unsigned wanted = std::min(kMostThreads, std::thread::hardware_concurrency());
  try {
    while (threads.size() + 1 < wanted) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // Fewer threads do the same work.
  }
  work();
  for (std::thread& thread : threads) thread.join();
  return fine;
}

// Transparent huge pages, or the reserved ones of a system without them. MAP_FAILED where there is no memory.
void* map_huge(std::size_t bytes) {
  constexpr int kPrivate = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kPrivate, -1, 0);
  if (memory == MAP_FAILED || madvise(memory, bytes, MADV_HUGEPAGE) == 0) return memory;
  void* reserved = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kPrivate | MAP_HUGETLB, -1, 0);
  if (reserved == MAP_FAILED) return memory;
  munmap(memory, bytes);
  return reserved;
}

}  // namespace

std::shared_ptr<const Resident> Resident::read(const FilePart& part) {
  const int file = open_part(part);
  if (file < 0) return nullptr;
  // Room to start on a huge page.
  const std::size_t mapped = (part.bytes + 2 * kHugePage - 1) / kHugePage * kHugePage;
  void* memory = map_huge(mapped);
  std::shared_ptr<const Resident> copy;
  if (memory != MAP_FAILED) {
    const auto start = (reinterpret_cast<std::uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
    auto* data = reinterpret_cast<char*>(start);
    copy.reset(new Resident(memory, mapped, data));
    if (!read_in_parallel(file, part, data))
      copy.reset();
    else
      mprotect(memory, mapped, PROT_READ);
  }
  close(file);
  return copy;
}

Resident::~Resident() { munmap(mapping_, mapped_); }

}  // namespace ultramem
