// Tables in memory that a GPU reads: PROGRAM FILE FINGERPRINT SCRATCH, over CUDA's calls on the host. FILE is at least
// 6 MB of random bytes, FINGERPRINT what Python says of the bytes from 4096 on.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "../cpp/check.h"
#include "gpu_tables/fingerprint.h"
#include "gpu_tables/mapping.h"
#include "gpu_tables/tables.h"
#include "runtime/failure.h"

extern "C" std::size_t cuda_on_host_held();

namespace {

using namespace ultramem::gpu_tables;
using ultramem::runtime::Failure;

std::string file, scratch;
Source source;
std::string bytes;  // of the table

// An environment variable for the life of this object.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

bool holds_the_table(const Resident& table) { return std::memcmp(table.data, bytes.data(), bytes.size()) == 0; }

void check_refused(const Source& wrong, UltramemCode code, const char* part) {
  try {
    acquire(wrong, Place::kDevice);
    CHECK(!"refused");
  } catch (const Failure& failure) {
    CHECK(failure.code == code);
    CHECK_TEXT(failure.what(), part);
  }
}

TEST(a_copy_in_device_memory_is_shared_and_freed) {
  {
    const auto first = acquire(source, Place::kDevice), second = acquire(source, Place::kAuto);
    CHECK(first->place == Place::kDevice && !first->in_place && holds_the_table(*first));
    CHECK(first == second && cuda_on_host_held() == 1);
    std::filesystem::remove(scratch + "/link");
    std::filesystem::create_hard_link(file, scratch + "/link");
    Source linked = source;
    linked.file = scratch + "/link";
    CHECK(acquire(linked, Place::kAuto) == first);  // another model's name for the same bytes
  }
  CHECK(cuda_on_host_held() == 0);
}

TEST(a_table_larger_than_the_device_is_read_where_the_file_is_mapped) {
  const Variable small("CUDA_ON_HOST_FREE", "1100000000");
  const auto table = acquire(source, Place::kAuto);
  CHECK(table->place == Place::kDevice);  // 26 MB are left above the reserve
  const Variable smaller("CUDA_ON_HOST_FREE", "1073741824");
  CHECK(acquire(source, Place::kAuto) == table);  // it is there already
  const auto mapped = acquire(source, Place::kHost);
  CHECK(mapped != table && mapped->place == Place::kHost && mapped->in_place && holds_the_table(*mapped));
}

TEST(without_room_it_goes_to_the_host) {
  const Variable small("CUDA_ON_HOST_FREE", "1073741824");
  const auto table = acquire(source, Place::kAuto);
  CHECK(table->place == Place::kHost && table->in_place && holds_the_table(*table));
  Source inside = source;  // not at the start of a page
  inside.offset += 10, inside.bytes = 1000;
  inside.fingerprint = fingerprint(reinterpret_cast<const std::byte*>(bytes.data()) + 10, 1000);
  CHECK(std::memcmp(acquire(inside, Place::kHost)->data, bytes.data() + 10, 1000) == 0);
}

TEST(a_file_that_cannot_be_pinned_is_copied) {
  const Variable refused("CUDA_ON_HOST_REGISTER", "0");
  const auto table = acquire(source, Place::kHost);
  CHECK(table->place == Place::kHost && !table->in_place && holds_the_table(*table));
}

TEST(everything_was_given_back) { CHECK(cuda_on_host_held() == 0); }

TEST(what_is_wrong_is_named) {
  Source wrong = source;
  wrong.fingerprint[0] = wrong.fingerprint[0] == '0' ? '1' : '0';
  check_refused(wrong, ULTRAMEM_CODE_DAMAGED, "has fingerprint");
  {
    const auto held = acquire(source, Place::kDevice);
    check_refused(wrong, ULTRAMEM_CODE_DAMAGED, "has fingerprint");  // of one that is loaded too
  }
  wrong = source, wrong.file += ".not";
  check_refused(wrong, ULTRAMEM_CODE_MISSING, "No such file");
  wrong = source, wrong.bytes += 1;
  check_refused(wrong, ULTRAMEM_CODE_DAMAGED, "a table is expected at");
  const Variable none("CUDA_ON_HOST_FREE", "1000");
  check_refused(source, ULTRAMEM_CODE_RUNTIME, "CUDA: out of memory");
  CHECK(cuda_on_host_held() == 0);
}

TEST(threads_load_it_once) {
  std::vector<std::shared_ptr<const Resident>> found(8);
  std::vector<std::thread> threads;
  for (auto& one : found) threads.emplace_back([&one] { one = acquire(source, Place::kDevice); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& one : found) CHECK(one == found[0]);
  CHECK(cuda_on_host_held() == 1);
}

TEST(offsets_and_sizes_of_more_than_32_bits) {
  const std::int64_t start = (std::int64_t{1} << 32) + 40, size = (std::int64_t{1} << 32) + 96;
  const std::string sparse = scratch + "/sparse";
  std::ofstream(sparse, std::ios::binary).put(0);
  std::filesystem::resize_file(sparse, static_cast<std::uintmax_t>(start + size));
  std::fstream stream(sparse, std::ios::binary | std::ios::in | std::ios::out);
  stream.seekp(start + size - 4) << "last";
  stream.close();
  Source large{sparse, start, size, fingerprint(Mapping(sparse, start, size).data(), size)};
  const auto table = acquire(large, Place::kHost);
  CHECK(table->in_place);
  CHECK(std::memcmp(static_cast<const char*>(table->data) + size - 4, "last", 4) == 0);
  CHECK(std::filesystem::remove(sparse));
}

TEST(the_environment_says_where) {
  CHECK(place_asked() == Place::kAuto);
  const Variable host("ULTRAMEM_GPU_TABLES", "host");
  CHECK(place_asked() == Place::kHost);
  const Variable device("ULTRAMEM_GPU_TABLES", "device");
  CHECK(place_asked() == Place::kDevice);
  const Variable wrong("ULTRAMEM_GPU_TABLES", "disk");
  try {
    place_asked();
    CHECK(!"refused");
  } catch (const Failure& failure) {
    CHECK_TEXT(failure.what(), "ULTRAMEM_GPU_TABLES: expected auto, device or host, found disk");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  file = argv[1], scratch = argv[3];
  std::ifstream stream(file, std::ios::binary);
  bytes.assign(std::istreambuf_iterator<char>(stream.seekg(4096)), {});
  source = {file, 4096, static_cast<std::int64_t>(bytes.size()), argv[2]};
  for (const check::Test& test : check::tests()) {
    const int before = check::failures;
    test.run();
    std::cerr << (check::failures == before ? "ok   " : "FAIL ") << test.name << "\n";
  }
  return check::failures == 0 ? 0 : 1;
}
