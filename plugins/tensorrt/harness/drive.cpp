#include "drive.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <set>

#include "tensors.h"

namespace ultramem::harness {
namespace {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

// A plugin with its three sides.
struct Sides {
  explicit Sides(nvinfer1::IPluginV3& plugin)
      : core(static_cast<nvinfer1::IPluginV3OneCore*>(plugin.getCapabilityInterface(PluginCapabilityType::kCORE))),
        build(static_cast<nvinfer1::IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD))),
        runtime(static_cast<nvinfer1::IPluginV3OneRuntime*>(
            plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME))) {}
  nvinfer1::IPluginV3OneCore* core;
  nvinfer1::IPluginV3OneBuild* build;
  nvinfer1::IPluginV3OneRuntime* runtime;
};

std::int32_t count(const Case& c, bool inputs) {
  return static_cast<std::int32_t>(inputs ? c.inputs.size() : c.outputs.size());
}

const std::string& kind_at(const Case& c, std::size_t position) {
  return position < c.inputs.size() ? c.inputs[position].kind : c.outputs[position - c.inputs.size()].kind;
}

void check_names(nvinfer1::IPluginCreatorV3One& creator, const Sides& sides, const Case& c, Report& report) {
  const PluginFieldCollection* names = creator.getFieldNames();
  std::set<std::string> found, expected = c.own_tables;
  for (std::int32_t f = 0; f < names->nbFields; ++f) found.insert(names->fields[f].name);
  for (const Field& field : c.fields) expected.insert(field.name);
  report.expect(found == expected, c.name + ": field names");
  report.expect(c.name == sides.core->getPluginName(), c.name + ": name");
  report.expect(std::strcmp(sides.core->getPluginVersion(), creator.getPluginVersion()) == 0, c.name + ": version");
  report.expect(std::strcmp(sides.core->getPluginNamespace(), "ai.ultramem") == 0, c.name + ": namespace");
  report.expect(std::strcmp(creator.getPluginNamespace(), "ai.ultramem") == 0, c.name + ": creator's namespace");
}

void check_shapes(const Sides& sides, const Case& c, Report& report) {
  ExpressionBuilder builder;
  std::vector<nvinfer1::DimsExprs> inputs, outputs(c.outputs.size());
  for (const Tensor& input : c.inputs) {
    nvinfer1::DimsExprs dims{};
    for (const std::string& dim : input.dims) dims.d[dims.nbDims++] = builder.free(dim);
    inputs.push_back(dims);
  }
  const auto ask = [&](std::int32_t input_count) {
    return sides.build->getOutputShapes(inputs.data(), input_count, nullptr, 0, outputs.data(), count(c, false),
                                        builder);
  };
  report.expect(ask(count(c, true) - 1) != 0, c.name + ": shapes of too few inputs are refused");
  report.expect(ask(count(c, true)) == 0, c.name + ": shapes");
  report.expect(builder.size_tensors() == 0, c.name + ": shapes do not depend on data");
  for (std::size_t o = 0; o < outputs.size(); ++o) {
    const std::vector<std::string>& expected = c.outputs[o].dims;
    report.expect(outputs[o].nbDims == static_cast<std::int32_t>(expected.size()), c.name + ": rank of an output");
    for (std::int32_t d = 0; d < outputs[o].nbDims; ++d) {
      const auto* dim = static_cast<const Expression*>(outputs[o].d[d]);
      const std::string& name = expected[static_cast<std::size_t>(d)];
      report.expect(dim->evaluate(c.sizes) == size_of(name, c.sizes), c.name + ": dimension " + name);
    }
  }
}

// Every type and format at every position, the tensors before it being right: exactly the written ones are taken.
void check_formats(const Sides& sides, const Case& c, Report& report) {
  Tensors tensors = tensors_of(c, c.sizes);
  for (std::size_t at = 0; at < tensors.all.size(); ++at) {
    const PluginTensorDesc right = tensors.all[at].desc;
    std::set<DataType> expected(types_of(kind_at(c, at)).begin(), types_of(kind_at(c, at)).end());
    for (std::size_t before = 0; before < at; ++before) {
      if (kind_at(c, before) == kind_at(c, at)) expected = {tensors.all[before].desc.type};
    }
    for (std::int32_t type = 0; type < nvinfer1::EnumMax<DataType>(); ++type) {
      for (std::int32_t format = 0; format < nvinfer1::EnumMax<TensorFormat>(); ++format) {
        tensors.all[at].desc.type = static_cast<DataType>(type);
        tensors.all[at].desc.format = static_cast<TensorFormat>(format);
        const bool wanted = expected.count(static_cast<DataType>(type)) == 1 && format == 0;
        const bool taken = sides.build->supportsFormatCombination(static_cast<std::int32_t>(at), tensors.all.data(),
                                                                  count(c, true), count(c, false));
        report.expect(taken == wanted, c.name + ": type " + std::to_string(type) + ", format " +
                                           std::to_string(format) + " at " + std::to_string(at));
      }
    }
    tensors.all[at].desc = right;
  }
}

void check_output_types(const Sides& sides, const Case& c, Report& report) {
  for (const DataType activation : types_of("activation")) {
    std::vector<DataType> inputs, outputs(c.outputs.size());
    for (const Tensor& input : c.inputs) {
      inputs.push_back(input.kind == "activation" ? activation : types_of(input.kind).front());
    }
    const std::int32_t status =
        sides.build->getOutputDataTypes(outputs.data(), count(c, false), inputs.data(), count(c, true));
    report.expect(status == 0, c.name + ": output types");
    for (std::size_t o = 0; o < outputs.size(); ++o) {
      const DataType expected = c.outputs[o].kind == "index" ? DataType::kINT64 : activation;
      report.expect(outputs[o] == expected, c.name + ": type of output " + std::to_string(o));
    }
  }
}

void check_configuration(const Sides& sides, const Case& c, Report& report) {
  const Tensors tensors = tensors_of(c, c.sizes);
  const std::int32_t in = count(c, true), out = count(c, false);
  report.expect(sides.build->getNbOutputs() == out, c.name + ": number of outputs");
  report.expect(sides.build->configurePlugin(tensors.all.data(), in, tensors.outputs(c), out) == 0,
                c.name + ": configure");
  const std::size_t workspace = sides.build->getWorkspaceSize(tensors.all.data(), in, tensors.outputs(c), out);
  report.expect(workspace == 0, c.name + ": a small problem needs no workspace");
  std::vector<std::int32_t> tactics(static_cast<std::size_t>(sides.build->getNbTactics()));
  sides.build->getValidTactics(tactics.data(), sides.build->getNbTactics());
  const std::set<std::int32_t> unique(tactics.begin(), tactics.end());
  report.expect(sides.build->getNbTactics() == c.tactics, c.name + ": number of tactics");
  report.expect(unique.size() == tactics.size() && unique.count(0) == 0, c.name + ": tactics differ and are not 0");
  for (const std::int32_t tactic : tactics) report.expect(sides.runtime->setTactic(tactic) == 0, c.name + ": tactic");
  report.expect(sides.runtime->setTactic(-7) != 0, c.name + ": an unknown tactic is refused");
  report.expect(sides.build->getTimingCacheID() != nullptr, c.name + ": timing cache id");
}

void check_sizes(const Sides& sides, const Case& c, Report& report) {
  const auto ask = [&](const Values& sizes) {
    const std::vector<PluginTensorDesc> descs = tensors_of(c, sizes).descs();
    return sides.runtime->onShapeChange(descs.data(), count(c, true), descs.data() + c.inputs.size(), count(c, false));
  };
  report.expect(ask(c.sizes) == 0, c.name + ": sizes that fit");
  for (const Values& wrong : c.wrong_sizes) {
    Values sizes = c.sizes;
    for (const auto& [name, size] : wrong) sizes[name] = size;
    report.expect(ask(sizes) != 0, c.name + ": sizes that do not fit, " + wrong.begin()->first);
  }
}

bool same_fields(const PluginFieldCollection& a, const PluginFieldCollection& b) {
  if (a.nbFields != b.nbFields) return false;
  for (std::int32_t f = 0; f < a.nbFields; ++f) {
    const PluginField &x = a.fields[f], &y = b.fields[f];
    if (std::strcmp(x.name, y.name) != 0 || x.type != y.type || x.length != y.length) return false;
    if (std::memcmp(x.data, y.data, sizeof(std::int64_t)) != 0) return false;
  }
  return true;
}

class ResourceContext final : public nvinfer1::IPluginResourceContext {
 public:
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

// An engine keeps the fields alone: a plugin made of them, and every copy, must be the plugin that was.
void check_copies(nvinfer1::IPluginCreatorV3One& creator, PluginPtr plugin, const Case& c, Report& report) {
  const Sides sides(*plugin);
  const PluginFieldCollection* fields = sides.runtime->getFieldsToSerialize();
  report.expect(fields->nbFields == static_cast<std::int32_t>(c.fields.size()), c.name + ": serialised fields");
  ResourceContext context;
  std::vector<PluginPtr> copies;
  copies.emplace_back(creator.createPlugin("node", fields, TensorRTPhase::kRUNTIME));
  copies.emplace_back(plugin->clone());
  copies.emplace_back(sides.runtime->attachToContext(&context));
  for (const PluginPtr& copy : copies) {
    report.expect(copy != nullptr, c.name + ": copy");
    if (copy == nullptr) continue;
    report.expect(same_fields(*Sides(*copy).runtime->getFieldsToSerialize(), *fields), c.name + ": fields of a copy");
  }
  plugin.reset();  // a copy must not lean on what it was copied from
  for (const PluginPtr& copy : copies) {
    if (copy != nullptr) check_shapes(Sides(*copy), c, report);
    if (copy != nullptr) check_sizes(Sides(*copy), c, report);
  }
}

}  // namespace

void Report::expect(bool condition, const std::string& what) {
  ++checks_;
  if (condition) return;
  ++failures_;
  std::printf("FAILED %s\n", what.c_str());
}

void drive(nvinfer1::IPluginCreatorV3One& creator, const Case& c, Report& report) {
  for (const std::vector<Field>& fields : c.wrong_fields) {
    report.expect(create(creator, fields, TensorRTPhase::kBUILD) == nullptr, c.name + ": wrong fields are refused");
  }
  PluginPtr plugin = create(creator, c.fields, TensorRTPhase::kBUILD);
  report.expect(plugin != nullptr, c.name + ": created from its fields");
  if (plugin == nullptr) return;
  const Sides sides(*plugin);
  check_names(creator, sides, c, report);
  check_output_types(sides, c, report);
  check_shapes(sides, c, report);
  check_formats(sides, c, report);
  check_configuration(sides, c, report);
  check_sizes(sides, c, report);
  check_copies(creator, std::move(plugin), c, report);
}

}  // namespace ultramem::harness
