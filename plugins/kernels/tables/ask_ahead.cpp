// Rows of a mapped table asked for from a thread of its own: where the disk's queue is full, asking waits for it.
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../ultramem_tables.h"

namespace ultramem {
namespace {

struct Request {
  UltramemTable table;
  std::vector<std::int64_t> addresses;
};

// One thread, started by the first request.
class Asker {
 public:
  // Waits for the request that the thread is at, and for no other.
  void stop() {
    if (!is_own_process()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

  // A request too many is dropped: whoever reads its rows asks for them then.
  void push(const UltramemTable& table, const std::int64_t* addresses, std::int64_t count) {
    constexpr std::size_t kMostWaiting = std::size_t{1} << 18;
    if (!is_own_process()) return;
    Request request{table, {addresses, addresses + count}};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_ || waiting_rows_ + request.addresses.size() > kMostWaiting) return;
      if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
      waiting_rows_ += request.addresses.size();
      waiting_.push_back(std::move(request));
    }
    changed_.notify_one();
  }

 private:
  // A forked child has neither the thread nor, for certain, the mutex.
  bool is_own_process() const { return getpid() == process_; }

  void work() {
    constexpr std::int64_t kAtOnce = 1024;
    for (std::unique_lock<std::mutex> lock(mutex_);;) {
      changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      const Request request = std::move(waiting_.front());
      waiting_.pop_front();
      waiting_rows_ -= request.addresses.size();
      lock.unlock();
      const auto count = static_cast<std::int64_t>(request.addresses.size());
      for (std::int64_t at = 0; at < count && !is_stopping(); at += kAtOnce) {
        ultramem_read_ahead(&request.table, request.addresses.data() + at, std::min(kAtOnce, count - at));
      }
      lock.lock();
    }
  }

  bool is_stopping() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return stopping_;
  }

  const pid_t process_ = getpid();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> waiting_;
  std::size_t waiting_rows_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

// Never destroyed: in a forked child a destructor would wait for the thread that the child does not have.
Asker& asker() {
  static struct Running {
    Asker& asker = *new Asker;
    ~Running() { asker.stop(); }
  } running;
  return running.asker;
}

}  // namespace
}  // namespace ultramem

extern "C" void ultramem_ask_ahead(const UltramemTable* table, const int64_t* addresses, int64_t count) {
  if (count <= 0) return;
  try {
    ultramem::asker().push(*table, addresses, count);
  } catch (const std::exception&) {
    // No memory, or no thread: the lookup asks.
  }
}
