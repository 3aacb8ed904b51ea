// The C functions of ultramem_tables.h that place tables, and the copies that the process shares.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>

#include "../ultramem_tables.h"
#include "resident.h"
#include "room.h"

namespace ultramem {
namespace {

using Copy = std::shared_ptr<const Resident>;

// Below it the TLB reaches most of a table anyway.
constexpr std::size_t kSmallest = std::size_t{32} << 20;

bool fits(std::size_t bytes, UltramemTables wanted) {
  const std::size_t room = available_memory();
  return bytes <= (wanted == ULTRAMEM_TABLES_AUTO ? room / 2 : room);
}

// The process's copy of a part, made now where there is none. Null where it does not fit.
Copy shared_copy(const FilePart& part, UltramemTables wanted) {
  static std::mutex mutex;
  static auto& copies = *new std::map<FilePart, std::weak_ptr<const Resident>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<const Resident>& held = copies[part];
  Copy copy = held.lock();
  if (copy == nullptr && fits(part.bytes, wanted)) held = copy = Resident::read(part);
  return copy;
}

// Whole pages of the range alone: its neighbours are read in other ways.
void expect_random_reads(const void* data, std::size_t bytes) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_RANDOM);
}

UltramemCode place_file(const FilePart& part, UltramemTables wanted, UltramemPlace* place) {
  if (wanted != ULTRAMEM_TABLES_MAPPED) {
    if (Copy copy = shared_copy(part, wanted)) {
      place->data = copy->data();
      place->copy = new Copy(std::move(copy));
      return ULTRAMEM_OK;
    }
    if (wanted == ULTRAMEM_TABLES_RESIDENT) return ULTRAMEM_OUT_OF_MEMORY;
  }
  expect_random_reads(place->data, part.bytes);
  place->read_ahead = 1;
  return ULTRAMEM_OK;
}

}  // namespace
}  // namespace ultramem

using namespace ultramem;

extern "C" {

int ultramem_tables_named(const char* name) {
  constexpr const char* kNames[] = {"auto", "resident", "mapped"};
  for (int mode = ULTRAMEM_TABLES_AUTO; mode <= ULTRAMEM_TABLES_MAPPED; ++mode) {
    if (std::strcmp(name, kNames[mode]) == 0) return mode;
  }
  return -1;
}

UltramemCode ultramem_place(const void* data, size_t bytes, UltramemTables wanted, UltramemPlace* place) {
  *place = {data, 0, nullptr};
  if (bytes == 0 || (wanted == ULTRAMEM_TABLES_AUTO && bytes < kSmallest)) return ULTRAMEM_OK;
  try {
    const std::optional<FilePart> part = file_part_of(data, bytes);
    return part ? place_file(*part, wanted, place) : ULTRAMEM_OK;
  } catch (const std::exception&) {
    return ULTRAMEM_OUT_OF_MEMORY;
  }
}

void ultramem_release(UltramemPlace* place) {
  delete static_cast<Copy*>(place->copy);
  *place = {nullptr, 0, nullptr};
}

}  // extern "C"
