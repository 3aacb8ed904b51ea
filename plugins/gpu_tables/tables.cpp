#include "tables.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>

#include "../runtime/failure.h"
#include "fingerprint.h"
#include "mapping.h"

namespace ultramem::gpu_tables {
namespace {

using runtime::fail;
using runtime::require;

constexpr std::size_t kReserve = std::size_t{1} << 30;  // device memory that is left for activations and caches
constexpr std::int64_t kPiece = 64 << 20;               // of a copy: what is read of the file at once

// The bytes as such, under whatever name the file has, on one device.
using Key = std::tuple<FileId, std::int64_t, std::int64_t, int, Place>;

struct Registry {
  std::mutex mutex;
  std::map<Key, std::weak_ptr<const Resident>> tables;
};

// Never destroyed: a plugin may let go of a table while the process ends.
Registry& registry() {
  static auto& one = *new Registry;
  return one;
}

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next launch is not told of it
  fail(ULTRAMEM_CODE_RUNTIME, what + ": CUDA: " + cudaGetErrorString(error));
}

// `copy(bytes, from, count)` for every piece of the mapping; the file's pages are let go of as they are copied.
template <typename Copy>
void in_pieces(const Mapping& mapping, std::int64_t bytes, const Copy& copy) {
  for (std::int64_t at = 0; at < bytes; at += kPiece) {
    const std::int64_t count = std::min(kPiece, bytes - at);
    copy(at, mapping.data() + at, static_cast<std::size_t>(count));
    mapping.release(at, at + count);
  }
}

Resident on_device(const Mapping& mapping, const Source& source) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<std::size_t>(source.bytes)),
        source.file + ": " + std::to_string(source.bytes) + " bytes of device memory for a table");
  const std::shared_ptr<void> owner(memory, cudaFree);
  in_pieces(mapping, source.bytes, [&](std::int64_t at, const std::byte* from, std::size_t count) {
    check(cudaMemcpy(static_cast<std::byte*>(memory) + at, from, count, cudaMemcpyHostToDevice), source.file);
  });
  return {memory, source.bytes, Place::kDevice, false, {}, owner};
}

// The file's own pages, pinned: nothing is copied, and the page cache is the only copy. Null where the driver or the
// filesystem has no such thing.
std::shared_ptr<const void> pinned(const std::shared_ptr<const Mapping>& mapping) {
  const unsigned flags = cudaHostRegisterMapped | cudaHostRegisterReadOnly;
  if (cudaHostRegister(mapping->pages(), mapping->page_bytes(), flags) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return {mapping->pages(), [mapping](void* pages) { cudaHostUnregister(pages); }};
}

const std::byte* device_address(void* host, const Source& source) {
  void* address = nullptr;
  check(cudaHostGetDevicePointer(&address, host, 0), source.file + ": pinned host memory");
  return static_cast<const std::byte*>(address);
}

Resident on_host(const std::shared_ptr<const Mapping>& mapping, const Source& source) {
  if (const auto owner = pinned(mapping)) {
    const std::byte* data = device_address(mapping->pages(), source) + mapping->lead();
    return {data, source.bytes, Place::kHost, true, {}, owner};
  }
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, static_cast<std::size_t>(source.bytes), cudaHostAllocMapped),
        source.file + ": " + std::to_string(source.bytes) + " bytes of pinned host memory for a table");
  const std::shared_ptr<void> owner(memory, cudaFreeHost);
  in_pieces(*mapping, source.bytes, [&](std::int64_t at, const std::byte* from, std::size_t count) {
    std::copy_n(from, count, static_cast<std::byte*>(memory) + at);
  });
  return {device_address(memory, source), source.bytes, Place::kHost, false, {}, owner};
}

Place place_for(const Source& source) {
  std::size_t available = 0, total = 0;
  check(cudaMemGetInfo(&available, &total), "device memory");
  const bool fits = available > kReserve && static_cast<std::size_t>(source.bytes) <= available - kReserve;
  return fits ? Place::kDevice : Place::kHost;
}

void check_fingerprint(const std::string& found, const Source& source) {
  require(found == source.fingerprint, ULTRAMEM_CODE_DAMAGED,
          source.file + ": the table at " + std::to_string(source.offset) + " has fingerprint " + found.substr(0, 12) +
              ", the engine was built for " + source.fingerprint.substr(0, 12) +
              ": copy the model directory that it was built with, or build it again");
}

std::shared_ptr<const Resident> load(const Source& source, const std::shared_ptr<const Mapping>& mapping, Place place) {
  const std::string found = fingerprint(mapping->data(), source.bytes);
  check_fingerprint(found, source);
  Resident made = place == Place::kDevice ? on_device(*mapping, source) : on_host(mapping, source);
  made.fingerprint = found;
  return std::make_shared<const Resident>(std::move(made));
}

}  // namespace

Place place_asked() {
  const char* value = std::getenv("ULTRAMEM_GPU_TABLES");
  const std::string text = value == nullptr ? "auto" : value;
  if (text == "auto" || text.empty()) return Place::kAuto;
  if (text == "device") return Place::kDevice;
  require(text == "host", ULTRAMEM_CODE_INVALID, "ULTRAMEM_GPU_TABLES: expected auto, device or host, found " + text);
  return Place::kHost;
}

std::shared_ptr<const Resident> acquire(const Source& source, Place place) {
  const auto mapping = std::make_shared<const Mapping>(source.file, source.offset, source.bytes);
  int device = 0;
  check(cudaGetDevice(&device), "the GPU");
  // One table at a time: two that ask for the same one must not both load it.
  const std::lock_guard<std::mutex> lock(registry().mutex);
  const auto slot = [&](Place where) -> std::weak_ptr<const Resident>& {
    return registry().tables[{mapping->file(), source.offset, source.bytes, device, where}];
  };
  for (const Place where : {Place::kDevice, Place::kHost}) {
    if (place != Place::kAuto && place != where) continue;
    if (auto held = slot(where).lock()) {
      check_fingerprint(held->fingerprint, source);
      return held;
    }
  }
  const Place chosen = place == Place::kAuto ? place_for(source) : place;
  auto made = load(source, mapping, chosen);
  slot(chosen) = made;
  return made;
}

}  // namespace ultramem::gpu_tables
