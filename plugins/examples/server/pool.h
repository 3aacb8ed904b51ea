// As many sessions as may run at once; who comes later waits, and is served in the order of arrival.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <ultramem/ultramem.hpp>
#include <vector>

class Pool {
 public:
  explicit Pool(std::vector<ultramem::Session> sessions) : sessions_(std::move(sessions)) {
    for (ultramem::Session& session : sessions_) idle_.push_back(&session);
  }

  using Lease = std::unique_ptr<ultramem::Session, std::function<void(ultramem::Session*)>>;

  // A session, given back when the lease ends; null where none came free in time, or the pool is closed.
  Lease lease(std::chrono::seconds patience) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto place = waiting_.insert(waiting_.end(), Waiter{});
    const auto my_turn = [&] { return !idle_.empty() && place == waiting_.begin(); };
    freed_.wait_for(lock, patience, [&] { return closed_ || my_turn(); });
    const bool served = !closed_ && my_turn();
    waiting_.erase(place);
    freed_.notify_all();  // whoever is first now
    if (!served) return {nullptr, [](ultramem::Session*) {}};
    ultramem::Session* session = idle_.back();
    idle_.pop_back();
    return {session, [this](ultramem::Session* used) {
              const std::lock_guard<std::mutex> guard(mutex_);
              idle_.push_back(used);
              freed_.notify_all();
            }};
  }

  // No new leases; what runs may finish in `patience`, then it is cancelled and waited for.
  void close(std::chrono::seconds patience) {
    std::unique_lock<std::mutex> lock(mutex_);
    closed_ = true;
    freed_.notify_all();
    const auto all_idle = [&] { return idle_.size() == sessions_.size(); };
    if (freed_.wait_for(lock, patience, all_idle)) return;
    for (ultramem::Session& session : sessions_) {
      if (std::find(idle_.begin(), idle_.end(), &session) == idle_.end()) session.cancel();
    }
    freed_.wait(lock, all_idle);
  }

 private:
  struct Waiter {};

  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<ultramem::Session> sessions_;
  std::vector<ultramem::Session*> idle_;
  std::list<Waiter> waiting_;
  bool closed_ = false;
};
