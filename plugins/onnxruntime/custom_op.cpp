#include "custom_op.h"

#include <climits>
#include <cstring>
#include <exception>
#include <string>
#include <utility>

namespace ultramem::onnxruntime {
namespace {

// One node of a loaded model.
struct Node {
  Node(const OrtApi* host, const CustomOp& op) : api(host), custom(op) {}

  const OrtApi* api;
  const CustomOp& custom;
  std::vector<std::int64_t> attributes;
  PlacedTables tables;
};

const CustomOp& self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

// Runs `body` and turns what it throws into a status: no exception may cross into the host.
template <typename Body>
OrtStatus* guarded(const OrtApi* api, const Body& body) noexcept {
  const auto status = ort::CreateStatus::of(api);
  try {
    body();
    return nullptr;
  } catch (const HostError& error) {
    return error.status;
  } catch (const BadInput& error) {
    return status(ort::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return status(ort::kRuntimeException, error.what());
  } catch (...) {
    return status(ort::kRuntimeException, "unknown error in an UltraMem kernel");
  }
}

// The attribute's value, or its default where the node lacks it. The host also fails where the type is wrong, which
// must not pass for absence.
std::int64_t read_attribute(const OrtApi* api, const Operator& op, const Attribute& attribute,
                            const OrtKernelInfo* info) {
  const auto failed = [api](OrtStatus* status) {
    if (status != nullptr) ort::ReleaseStatus::of(api)(status);
    return status != nullptr;
  };
  std::int64_t value = attribute.fallback;
  if (failed(ort::KernelInfoGetAttributeInt::of(api)(info, attribute.name, &value))) {
    float wrong = 0;
    const bool is_float = !failed(ort::KernelInfoGetAttributeFloat::of(api)(info, attribute.name, &wrong));
    require(!is_float && !attribute.required, op,
            std::string("attribute ") + attribute.name + " must be given, as an integer");
    return attribute.fallback;
  }
  require(attribute.choice_count == 0 || (0 <= value && value < attribute.choice_count), op,
          std::string("attribute ") + attribute.name + " must be in [0, " + std::to_string(attribute.choice_count) +
              "), found " + std::to_string(value));
  return value;
}

OrtStatus* ORT_CALL create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return guarded(api, [&] {
    auto node = std::make_unique<Node>(api, self(op));
    const Operator& description = node->custom.op;
    for (int a = 0; a < description.attribute_count; ++a) {
      node->attributes.push_back(read_attribute(api, description, description.attributes[a], info));
    }
    if (node->custom.on_cpu()) node->tables.place(api, description, info, node->custom.tables);
    *kernel = node.release();
  });
}

OrtStatus* ORT_CALL compute_kernel(void* kernel, OrtKernelContext* host) {
  const Node& node = *static_cast<const Node*>(kernel);
  return guarded(node.api, [&] {
    node.custom.compute(Context(node.api, node.custom.op, node.tables, host), node.attributes.data());
  });
}

void ORT_CALL destroy_kernel(void* kernel) { delete static_cast<Node*>(kernel); }

// The next combination of `choice` in counting order; false after the last.
bool advance(const Operator& op, std::vector<int>& choice) {
  for (std::size_t v = 0; v < choice.size(); ++v) {
    if (++choice[v] < op.types[v].allowed_count) return true;
    choice[v] = 0;
  }
  return false;
}

}  // namespace

CustomOp::CustomOp(const Registered& registered, std::vector<ElementType> chosen, UltramemTables places)
    : OrtCustomOp{},
      op(registered.op),
      types(std::move(chosen)),
      compute(registered.compute),
      provider(registered.provider),
      tables(places) {
  version = ort::kApiVersion;
  GetName = [](const OrtCustomOp* op) { return self(op).op.name; };
  GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op).provider; };
  GetInputType = [](const OrtCustomOp* op, std::size_t i) { return self(op).type_of(self(op).op.inputs[i]); };
  GetInputTypeCount = [](const OrtCustomOp* op) { return static_cast<std::size_t>(self(op).op.input_count); };
  GetOutputType = [](const OrtCustomOp* op, std::size_t i) { return self(op).type_of(self(op).op.outputs[i]); };
  GetOutputTypeCount = [](const OrtCustomOp* op) { return static_cast<std::size_t>(self(op).op.output_count); };
  KernelDestroy = destroy_kernel;
  GetInputCharacteristic = [](const OrtCustomOp* op, std::size_t i) {
    return self(op).op.inputs[i].optional ? ort::kOptional : ort::kRequired;
  };
  GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return ort::kRequired; };
  GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return ort::kDefaultMemory; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute_kernel;
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
}

bool CustomOp::on_cpu() const { return std::strcmp(provider, "CPUExecutionProvider") == 0; }

std::int32_t CustomOp::type_of(const Port& port) const {
  for (std::size_t v = 0; v < types.size(); ++v) {
    if (std::strcmp(op.types[v].name, port.type) == 0) return static_cast<std::int32_t>(types[v]);
  }
  return 0;  // ONNX's UNDEFINED
}

std::vector<std::unique_ptr<CustomOp>> combinations(const Registered& registered, UltramemTables tables) {
  const Operator& op = registered.op;
  std::vector<std::unique_ptr<CustomOp>> all;
  std::vector<int> choice(static_cast<std::size_t>(op.type_count), 0);
  do {
    std::vector<ElementType> types;
    for (std::size_t v = 0; v < choice.size(); ++v) types.push_back(op.types[v].allowed[choice[v]]);
    all.push_back(std::make_unique<CustomOp>(registered, types, tables));
  } while (advance(op, choice));
  return all;
}

}  // namespace ultramem::onnxruntime
