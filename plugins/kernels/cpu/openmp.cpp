// The threads of an OpenMP runtime that the process has already, so that ours do not compete with them.
#include <atomic>

#include "../ultramem_kernels.h"

namespace {

struct Team {
  UltramemTask task;
  size_t count;
  void* data;
  std::atomic<size_t> next{0};
};

void work(void* data) {
  auto& team = *static_cast<Team*>(data);
  for (size_t i = team.next++; i < team.count; i = team.next++) team.task(team.data, i);
}

}  // namespace

extern "C" void ultramem_openmp_for(void* host, UltramemTask task, size_t count, void* data) {
  const auto& openmp = *static_cast<const UltramemOpenMp*>(host);
  Team team{task, count, data};
  openmp.parallel(work, &team, openmp.threads, 0);
}
