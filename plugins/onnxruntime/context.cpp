#include "context.h"

#include <cstring>
#include <memory>
#include <new>
#include <string>

namespace ultramem::onnxruntime {
namespace {

bool is_allowed(const Operator& op, const Port& port, ElementType type) {
  for (int v = 0; v < op.type_count; ++v) {
    if (std::strcmp(op.types[v].name, port.type) != 0) continue;
    for (int a = 0; a < op.types[v].allowed_count; ++a) {
      if (op.types[v].allowed[a] == type) return true;
    }
  }
  return false;
}

std::size_t element_bytes(ElementType type) {
  switch (type) {
    case ElementType::kInt64:
      return 8;
    case ElementType::kFloat32:
      return 4;
    case ElementType::kFloat16:
    case ElementType::kBFloat16:
      return 2;
    case ElementType::kUint8:
    case ElementType::kInt8:
      break;
  }
  return 1;
}

}  // namespace

Input input_of(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort::GetTensorTypeAndShape::of(api)(value, &raw));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> info(
      raw, ort::ReleaseTensorTypeAndShapeInfo::of(api));
  std::int32_t type = 0;
  std::size_t rank = 0;
  check(ort::GetTensorElementType::of(api)(raw, &type));
  check(ort::GetDimensionsCount::of(api)(raw, &rank));
  Shape shape(rank);
  check(ort::GetDimensions::of(api)(raw, shape.data(), rank));
  void* data = nullptr;
  check(ort::GetTensorMutableData::of(api)(const_cast<OrtValue*>(value), &data));
  return {data, static_cast<ElementType>(type), shape};
}

std::size_t byte_size(const Input& input) {
  std::size_t bytes = element_bytes(input.type);
  for (const std::int64_t size : input.shape) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

std::vector<Input> Context::inputs() const {
  std::vector<Input> all;
  all.reserve(static_cast<std::size_t>(op_.input_count));
  for (int i = 0; i < op_.input_count; ++i) {
    if (!op_.inputs[i].optional || value(i) != nullptr) all.push_back(input(i));
  }
  return all;
}

// Null where the node leaves the input out: the host counts named inputs that are empty, and not those never named.
const OrtValue* Context::value(int index) const {
  std::size_t count = 0;
  check(ort::KernelContextGetInputCount::of(api_)(host_, &count));
  const OrtValue* found = nullptr;
  const auto at = static_cast<std::size_t>(index);
  if (at < count) check(ort::KernelContextGetInput::of(api_)(host_, at, &found));
  return found;
}

Input Context::input(int index) const {
  const Port& port = op_.inputs[index];
  const OrtValue* value = this->value(index);
  require(value != nullptr, op_, "input ", port.name, " is missing");

  Input input = input_of(api_, value);
  require(is_allowed(op_, port, input.type), op_, "input ", port.name, " has ONNX element type ",
          static_cast<std::int32_t>(input.type), ", which the operator does not take");
  const UltramemPlace place = tables_.at(input.data);
  input.data = place.data;
  input.read_ahead = place.read_ahead != 0;
  return input;
}

void* Context::output(int index, const Shape& shape) const {
  OrtValue* value = nullptr;
  check(ort::KernelContextGetOutput::of(api_)(host_, static_cast<std::size_t>(index), shape.data(), shape.size(),
                                              &value));
  require(value != nullptr, op_, "output ", op_.outputs[index].name, " is not connected");
  void* data = nullptr;
  check(ort::GetTensorMutableData::of(api_)(value, &data));
  return data;
}

void* Context::gpu_stream() const {
  void* stream = nullptr;
  check(ort::KernelContextGetGPUComputeStream::of(api_)(host_, &stream));
  return stream;
}

void Context::parallel_for(void* host, UltramemTask task, std::size_t count, void* data) {
  const auto& threads = *static_cast<Threads*>(host);
  *threads.failed = ort::KernelContextParallelFor::of(threads.api)(threads.host, task, count, 0, data);
}

void Context::raise(const UltramemStatus& status) const {
  const std::string name = op_.name;
  switch (status.code) {
    case ULTRAMEM_OK:
      return;
    case ULTRAMEM_BAD_ADDRESS:
      throw BadInput(name + ": address " + std::to_string(status.address) + " at token " +
                     std::to_string(status.token) + ", slot " + std::to_string(status.slot) +
                     " lies outside the table: the indices do not belong to this table");
    case ULTRAMEM_UNSUPPORTED_TYPE:
      throw BadInput(name + ": the kernel does not take this combination of element types");
    case ULTRAMEM_BAD_SHAPE:
      throw std::logic_error(name + ": the adapter passed shapes that the kernel refuses");
    case ULTRAMEM_OUT_OF_MEMORY:
      throw std::bad_alloc();
  }
}

}  // namespace ultramem::onnxruntime
