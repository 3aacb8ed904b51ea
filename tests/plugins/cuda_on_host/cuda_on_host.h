// What the kernels use of CUDA, on the threads of a CPU: one thread of the host for each thread of a block, one block
// after the other, barriers that are barriers. So the device's sources run as they are, and ThreadSanitizer sees a
// missing barrier as the race that it is.
#pragma once

#include <array>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/cuda/ultramem_cuda.h"

#define __global__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static  // blocks run one after the other, so all threads of one share what is static

namespace ultramem::cuda {

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx, blockIdx, blockDim;

struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};

class Barrier {
 public:
  void wait(std::uint32_t threads) {
    std::unique_lock<std::mutex> lock(mutex_);
    const std::uint64_t round = round_;
    if (++arrived_ == threads) {
      arrived_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  std::uint32_t arrived_ = 0;
  std::uint64_t round_ = 0;
};

// What the threads of a block meet at.
struct Meeting {
  std::array<Barrier, 16> barriers;
  std::array<Barrier, 32> warps;
  std::array<std::atomic<std::uint32_t>, 1024> exchanged{};
  std::vector<char> shared;
};
inline Meeting* meeting = nullptr;

inline void wait_at(int barrier, std::uint32_t threads) {
  meeting->barriers[static_cast<std::size_t>(barrier)].wait(threads);
}
inline void __syncthreads() { wait_at(0, blockDim.x); }

inline char* shared_memory() {
  const auto at = reinterpret_cast<std::uintptr_t>(meeting->shared.data());
  return meeting->shared.data() + (16 - at % 16) % 16;
}

// Every lane leaves a word and reads all of its warp's; `read` sees them as an array of 32.
template <typename Read>
auto among_lanes(std::uint32_t word, const Read& read) {
  Barrier& warp = meeting->warps[threadIdx.x / 32];
  meeting->exchanged[threadIdx.x] = word;
  warp.wait(32);
  const auto result = read(&meeting->exchanged[threadIdx.x / 32 * 32]);
  warp.wait(32);
  return result;
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  return among_lanes(vote, [](const std::atomic<std::uint32_t>* votes) {
    unsigned all = 0;
    for (int lane = 0; lane < 32; ++lane) all |= votes[lane].load() << lane;
    return all;
  });
}

inline float __shfl_xor_sync(unsigned, float value, int step, int) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return among_lanes(bits, [&](const std::atomic<std::uint32_t>* words) {
    const std::uint32_t other = words[threadIdx.x % 32 ^ static_cast<unsigned>(step)].load();
    float result;
    std::memcpy(&result, &other, sizeof result);
    return result;
  });
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
inline std::uint32_t atomicAdd(std::uint32_t* at, std::uint32_t value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

template <typename... Parameters>
UltramemLaunch launch_kernel(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared,
                             UltramemStream, Parameters... parameters) {
  Meeting here;
  here.shared.assign(shared + 16, '\xff');
  meeting = &here;
  std::vector<std::thread> all;
  for (int thread = 0; thread < threads; ++thread) {
    all.emplace_back([=] {
      threadIdx.x = static_cast<unsigned>(thread);
      blockDim.x = static_cast<unsigned>(threads);
      for (std::int64_t block = 0; block < blocks; ++block) {
        blockIdx.x = static_cast<unsigned>(block);
        kernel(parameters...);
        __syncthreads();
      }
    });
  }
  for (std::thread& thread : all) thread.join();
  return {ULTRAMEM_OK, 0};
}

}  // namespace ultramem::cuda
