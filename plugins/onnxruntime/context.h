// One run of one node, as our kernels see it: tensors in, tensors out, the host's threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "../kernels/ultramem_kernels.h"
#include "../shapes.h"
#include "ort_abi.h"

namespace ultramem::onnxruntime {

// A status that ONNX Runtime itself returned, on its way back to it.
struct HostError {
  OrtStatus* status;
};

// Throws HostError where `status` is not success (null).
inline void check(OrtStatus* status) {
  if (status != nullptr) throw HostError{status};
}

struct Input {
  const void* data;
  ElementType type;
  Shape shape;
};

class Context {
 public:
  Context(const OrtApi* api, const Operator& op, OrtKernelContext* host) : api_(api), op_(op), host_(host) {}

  const Operator& op() const { return op_; }

  // Every input that is there, each of a type that the description allows (else BadInput).
  std::vector<Input> inputs() const;

  // The memory of output `index`, allocated in this shape.
  void* output(int index, const Shape& shape) const;

  // Runs task(i, scratch) for i in [0, count), count <= kMostTasks, on the host's threads; every call has its own
  // `scratch_bytes` of scratch. Throws BadInput that names the first bad address, if a task found one.
  using Task = std::function<UltramemStatus(std::int64_t index, void* scratch)>;
  void run(std::int64_t count, std::size_t scratch_bytes, const Task& task) const;

  // The stream that a GPU's provider computes on (CUDA's cudaStream_t); null on the CPU.
  void* gpu_stream() const;

  static constexpr std::int64_t kMostTasks = 64;

 private:
  const OrtValue* value(int index) const;
  Input input(int index) const;

  const OrtApi* api_;
  const Operator& op_;
  OrtKernelContext* host_;
};

// Bytes of one element.
inline std::int64_t size_of(ElementType type) {
  switch (type) {
    case ElementType::kInt64:
      return 8;
    case ElementType::kFloat32:
      return 4;
    case ElementType::kInt8:
    case ElementType::kUint8:
      return 1;
    case ElementType::kFloat16:
    case ElementType::kBFloat16:
      break;
  }
  return 2;
}

// Part `index` of [0, size) cut into `parts` nearly equal ranges.
inline UltramemRange part_of(std::int64_t size, std::int64_t parts, std::int64_t index) {
  const std::int64_t each = size / parts, more = size % parts;
  const std::int64_t begin = index * each + (index < more ? index : more);
  return {begin, begin + each + (index < more ? 1 : 0)};
}

// How many tasks to make of `bytes` of memory traffic: few enough that handing one over costs little beside it.
inline std::int64_t tasks_for(std::int64_t bytes) {
  constexpr std::int64_t kBytesEach = 64 << 10;
  const std::int64_t tasks = bytes / kBytesEach;
  return tasks < 1 ? 1 : tasks > Context::kMostTasks ? Context::kMostTasks : tasks;
}

}  // namespace ultramem::onnxruntime
