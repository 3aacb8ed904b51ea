#include "resource.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <limits>
#include <mutex>
#include <sstream>

#include "../runtime/failure.h"
#include "../shapes.h"

namespace ultramem::tensorrt {
namespace {

using nvinfer1::DataType;

struct Type {
  const char* name;
  DataType type;
  std::int64_t bytes;
};
constexpr Type kTypes[] = {{"float32", DataType::kFLOAT, 4},
                           {"float16", DataType::kHALF, 2},
                           {"bfloat16", DataType::kBF16, 2},
                           {"int8", DataType::kINT8, 1}};

struct Folders {
  std::mutex mutex;
  std::deque<std::string> latest_first;
};

Folders& folders() {
  static auto& one = *new Folders;
  return one;
}

std::deque<std::string> all_folders() {
  const std::lock_guard<std::mutex> lock(folders().mutex);
  std::deque<std::string> all = folders().latest_first;
  if (const char* named = std::getenv("ULTRAMEM_GPU_TABLES_FOLDER"); named != nullptr) all.emplace_back(named);
  return all;
}

// "36x16" as [36, 16]; nothing where it is no shape, or has more than 2^63 bytes at `item` bytes each.
Shape parse_shape(const std::string& text, std::int64_t item) {
  Shape shape;
  std::istringstream parts(text);
  std::int64_t bytes = item;
  for (std::string part; std::getline(parts, part, 'x');) {
    char* end = nullptr;
    const std::int64_t size = std::strtoll(part.c_str(), &end, 10);
    if (part.empty() || *end != '\0' || size < 1 || size > std::numeric_limits<std::int64_t>::max() / bytes) return {};
    bytes *= size;
    shape.push_back(size);
  }
  return shape;
}

}  // namespace

bool may_be_resource(const Port& port) {
  return std::strcmp(port.name, "table") == 0 || std::strcmp(port.name, "scales") == 0;
}

Resource parse_resource(const Operator& op, const Port& port, const std::string& text) {
  std::istringstream words(text);
  std::string type_name, shape_text, file;
  Resource found{text, {}, {}};
  words >> type_name >> shape_text >> found.source.offset >> found.source.fingerprint >> std::ws;
  std::getline(words, file);
  const Type* type = nullptr;
  for (const Type& known : kTypes) type = type_name == known.name ? &known : type;
  const Shape shape = type == nullptr ? Shape{} : parse_shape(shape_text, type->bytes);
  const bool inside = !file.empty() && file[0] != '/' && ("/" + file + "/").find("/../") == std::string::npos;
  require(inside && found.source.offset >= 0 && static_cast<int>(shape.size()) == port.rank, op,
          std::string("field ") + port.name + " must be \"TYPE SHAPE OFFSET FINGERPRINT FILE\" of " +
              std::to_string(port.rank) + " dimensions, found \"" + text + "\"");
  found.desc.type = type->type;
  found.desc.format = nvinfer1::TensorFormat::kLINEAR;
  found.source.bytes = type->bytes;
  for (const std::int64_t size : shape) {
    found.desc.dims.d[found.desc.dims.nbDims++] = size;
    found.source.bytes *= size;
  }
  found.source.file = file;
  return found;
}

void add_folder(const std::string& folder) {
  const std::lock_guard<std::mutex> lock(folders().mutex);
  auto& all = folders().latest_first;
  for (auto at = all.begin(); at != all.end();) at = *at == folder ? all.erase(at) : at + 1;
  all.push_front(folder);
}

std::shared_ptr<const gpu_tables::Resident> find_resident(const Resource& resource) {
  std::string problem = resource.source.file + ": no folder holds this table: call ultramem_add_tables with the " +
                        "engine's model directory, or name it in ULTRAMEM_GPU_TABLES_FOLDER";
  for (const std::string& folder : all_folders()) {
    gpu_tables::Source source = resource.source;
    source.file = folder + "/" + resource.source.file;
    if (!std::filesystem::exists(source.file)) continue;
    try {
      return gpu_tables::acquire(source, gpu_tables::place_asked());
    } catch (const runtime::Failure& failure) {
      if (failure.code != ULTRAMEM_CODE_DAMAGED) throw;
      problem = failure.what();  // another model's table of the same name: the right one may lie elsewhere
    }
  }
  throw runtime::Failure(ULTRAMEM_CODE_MISSING, problem);
}

}  // namespace ultramem::tensorrt
