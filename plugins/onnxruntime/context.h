// One run of one node, as our kernels see it: tensors in, tensors out, the host's threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../kernels/ultramem_kernels.h"
#include "../shapes.h"
#include "ort_abi.h"
#include "placed_tables.h"

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
  bool read_ahead = false;  // the data may lie on a disk
};

// A tensor of the host's.
Input input_of(const OrtApi* api, const OrtValue* value);

std::size_t byte_size(const Input& input);

class Context {
 public:
  Context(const OrtApi* api, const Operator& op, const PlacedTables& tables, OrtKernelContext* host)
      : api_(api), op_(op), tables_(tables), host_(host) {}

  const Operator& op() const { return op_; }

  // Every input that is there, each of a type that the description allows (else BadInput).
  std::vector<Input> inputs() const;

  // The memory of output `index`, allocated in this shape.
  void* output(int index, const Shape& shape) const;

  // Runs a problem on the host's threads. Throws BadInput that names the first bad address, if there is one.
  template <typename Problem>
  void run(const Problem& problem) const {
    OrtStatus* failed = nullptr;
    Threads host{api_, host_, &failed};
    const UltramemThreads threads{parallel_for, &host, 0};
    const UltramemStatus status = problem(&threads);
    check(failed);
    raise(status);
  }

  // The stream that a GPU's provider computes on (CUDA's cudaStream_t); null on the CPU.
  void* gpu_stream() const;

 private:
  struct Threads {
    const OrtApi* api;
    OrtKernelContext* host;
    OrtStatus** failed;
  };

  static void parallel_for(void* host, UltramemTask task, std::size_t count, void* data);
  void raise(const UltramemStatus& status) const;
  const OrtValue* value(int index) const;
  Input input(int index) const;

  const OrtApi* api_;
  const Operator& op_;
  const PlacedTables& tables_;
  OrtKernelContext* host_;
};

}  // namespace ultramem::onnxruntime
