#include "enqueue.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "../../gpu_tables/fingerprint.h"
#include "tensors.h"
#include "values.h"

namespace ultramem::harness {
namespace {

using nvinfer1::PluginTensorDesc;

nvinfer1::IPluginV3OneRuntime& runtime_of(nvinfer1::IPluginV3& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

// What a node is given: descriptions of its inputs and then of its outputs, and the inputs' addresses.
struct Given {
  std::vector<PluginTensorDesc> descs;
  std::vector<const void*> inputs;
};

void run(nvinfer1::IPluginV3& plugin, const Case& c, const Given& given, const std::vector<Numbers>& wanted,
         Memory& memory, Report& report) {
  nvinfer1::IPluginV3OneRuntime& runtime = runtime_of(plugin);
  const auto in = static_cast<std::int32_t>(given.inputs.size()), out = static_cast<std::int32_t>(c.outputs.size());
  const PluginTensorDesc *descs = given.descs.data(), *output_descs = descs + in;
  std::vector<void*> outputs;
  std::vector<std::size_t> sizes;
  for (std::size_t o = 0; o < c.outputs.size(); ++o) {
    const std::size_t each = c.outputs[o].kind == "index" ? 8 : 4;
    sizes.push_back(static_cast<std::size_t>(count_of(output_descs[o].dims)) * each);
    outputs.push_back(memory.place(std::vector<std::byte>(sizes.back(), std::byte{0xff})));  // NaN
  }
  report.expect(runtime.onShapeChange(descs, in, output_descs, out) == 0, c.name + ": sizes of a run");
  report.expect(runtime.enqueue(descs, output_descs, given.inputs.data(), outputs.data(), nullptr, nullptr) == 0,
                c.name + ": enqueue");
  for (std::size_t o = 0; o < outputs.size(); ++o) {
    const Numbers found = numbers_of(memory.read(outputs[o], sizes[o]), c.outputs[o].kind == "index");
    report.expect(are_close(found, wanted[o]),
                  c.name + " over " + c.inputs.front().kind + ": output " + std::to_string(o));
  }
}

bool is_own(const Tensor& input) {
  return input.kind == "scale" || input.kind == "table" || input.kind.find(" table") != std::string::npos;
}

// A folder of its own that goes with this object.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "ultramem-XXXXXX").string();
    if (mkdtemp(name.data()) != nullptr) path_ = name;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The field that says where a tensor lies in the model's file and what it is.
Field own_field(const Tensor& input, const PluginTensorDesc& desc, const Value& value, std::int64_t offset) {
  std::string text = desc.type == DataType::kFLOAT ? "float32 " : "int8 ";
  for (std::int32_t d = 0; d < desc.dims.nbDims; ++d) text += (d == 0 ? "" : "x") + std::to_string(desc.dims.d[d]);
  text += " " + std::to_string(offset) + " ";
  text += gpu_tables::fingerprint(value.bytes.data(), static_cast<std::int64_t>(value.bytes.size())) + " model of one";
  return text_field(input.kind == "scale" ? "scales" : "table", text);
}

// The builder runs a plugin as it is; of an engine a host makes contexts, which hold the same tables and run after it
// is gone.
void check_contexts(PluginPtr plugin, const Case& c, const Given& given, const std::vector<Numbers>& wanted,
                    Memory& memory, Report& report) {
  report.expect(
      runtime_of(*plugin).enqueue(given.descs.data(), nullptr, given.inputs.data(), nullptr, nullptr, nullptr) != 0,
      c.name + ": before its sizes are known there is no table to read");
  run(*plugin, c, given, wanted, memory, report);
  PluginPtr contexts[] = {PluginPtr(runtime_of(*plugin).attachToContext(nullptr)),
                          PluginPtr(runtime_of(*plugin).attachToContext(nullptr))};
  plugin.reset();
  for (PluginPtr& context : contexts) {
    report.expect(context != nullptr, c.name + ": attached, its tables loaded");
    if (context != nullptr) run(*context, c, given, wanted, memory, report);
    context.reset();
  }
}

}  // namespace

void enqueue(nvinfer1::IPluginCreatorV3One& creator, const Case& c, Memory& memory, Report& report) {
  const PluginPtr plugin = create(creator, c.fields, nvinfer1::TensorRTPhase::kRUNTIME);
  const Tensors tensors = tensors_of(c, c.sizes);
  const std::vector<Value> values = draw_inputs(c, tensors);
  Given given{tensors.descs(), {}};
  for (const Value& value : values) given.inputs.push_back(memory.place(value.bytes));
  run(*plugin, c, given, expected_outputs(c, values), memory, report);
}

void enqueue_with_own_tables(nvinfer1::IPluginCreatorV3One& creator, const Case& c, AddTables add_tables,
                             Memory& memory, Report& report) {
  if (!is_own(c.inputs.front())) return;
  const Tensors tensors = tensors_of(c, c.sizes);
  const std::vector<PluginTensorDesc> descs = tensors.descs();
  const std::vector<Value> values = draw_inputs(c, tensors);
  std::vector<Field> fields = c.fields;
  std::vector<char> file(16);  // as if a header came first
  Given given;
  for (std::size_t i = 0; i < c.inputs.size(); ++i) {
    if (is_own(c.inputs[i])) {
      fields.push_back(own_field(c.inputs[i], descs[i], values[i], static_cast<std::int64_t>(file.size())));
      const auto* bytes = reinterpret_cast<const char*>(values[i].bytes.data());
      file.insert(file.end(), bytes, bytes + values[i].bytes.size());
    } else {
      given.descs.push_back(descs[i]);
      given.inputs.push_back(memory.place(values[i].bytes));
    }
  }
  given.descs.insert(given.descs.end(), descs.begin() + static_cast<std::ptrdiff_t>(c.inputs.size()), descs.end());

  PluginPtr plugin = create(creator, fields, nvinfer1::TensorRTPhase::kRUNTIME);
  report.expect(plugin != nullptr, c.name + ": created with tables of its own");
  if (plugin == nullptr) return;
  const Folder other, folder;
  file[16] ^= 1;
  std::ofstream(other.path() + "/model of one", std::ios::binary)
      .write(file.data(), static_cast<std::streamsize>(file.size()));
  add_tables(other.path().c_str());
  report.expect(PluginPtr(runtime_of(*plugin).attachToContext(nullptr)) == nullptr,
                c.name + ": another model's table of that name is refused");
  file[16] ^= 1;
  std::ofstream(folder.path() + "/model of one", std::ios::binary)
      .write(file.data(), static_cast<std::streamsize>(file.size()));
  add_tables(folder.path().c_str());
  add_tables(other.path().c_str());  // which is looked at first
  check_contexts(std::move(plugin), c, given, expected_outputs(c, values), memory, report);
}

}  // namespace ultramem::harness
