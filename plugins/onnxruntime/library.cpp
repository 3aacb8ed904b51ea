// The library's exported functions: RegisterCustomOps for ONNX Runtime, two questions for whoever wants to know.
#include <map>
#include <mutex>
#include <string>

#include "../operators.h"
#include "custom_op.h"

#define ULTRAMEM_EXPORT extern "C" __attribute__((visibility("default")))

namespace ultramem::onnxruntime {
namespace {

// A domain and the operators in it, which sessions refer to for as long as they live: never freed.
struct Domain {
  OrtCustomOpDomain* host = nullptr;
  std::vector<std::unique_ptr<CustomOp>> ops;
};

Domain* make_domain(const OrtApi* api) {
  auto domain = std::make_unique<Domain>();
  check(ort::CreateCustomOpDomain::of(api)(operators::kDomain, &domain->host));
  for (const Registered& each : registered()) {
    for (auto& op : combinations(each)) {
      check(ort::CustomOpDomainAdd::of(api)(domain->host, op.get()));
      domain->ops.push_back(std::move(op));
    }
  }
  return domain.release();
}

// One domain for each runtime in the process, however many sessions it opens.
Domain& domain_of(const OrtApi* api) {
  static std::mutex mutex;
  static auto& domains = *new std::map<const OrtApi*, Domain*>;
  const std::lock_guard<std::mutex> lock(mutex);
  Domain*& domain = domains[api];
  if (domain == nullptr) domain = make_domain(api);
  return *domain;
}

// A status cannot be made without an API, so the error about a missing API 17 is made with the first one there is.
OrtStatus* too_old(const OrtApiBase* base) {
  for (std::uint32_t version = ort::kApiVersion - 1; version >= 1; --version) {
    if (const OrtApi* api = base->GetApi(version); api != nullptr) {
      const std::string message = "the UltraMem operators need ONNX Runtime 1.17 or newer, found " +
                                  std::string(base->GetVersionString()) + ": upgrade onnxruntime";
      return ort::CreateStatus::of(api)(ort::kNotImplemented, message.c_str());
    }
  }
  // A runtime that knows no API at all cannot read a status either; any non-null value means failure.
  return reinterpret_cast<OrtStatus*>(const_cast<OrtApiBase*>(base));
}

}  // namespace
}  // namespace ultramem::onnxruntime

ULTRAMEM_EXPORT OrtStatus* ORT_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace ultramem::onnxruntime;
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return too_old(base);
  if (const char* error = ultramem_cpu_error(); error != nullptr) {
    return ort::CreateStatus::of(api)(ort::kInvalidArgument, error);
  }
  try {
    return ort::AddCustomOpDomain::of(api)(options, domain_of(api).host);
  } catch (const HostError& error) {
    return error.status;
  } catch (const std::exception& error) {
    return ort::CreateStatus::of(api)(ort::kRuntimeException, error.what());
  }
}

// The version of the package that this library belongs to.
ULTRAMEM_EXPORT const char* ultramem_version() { return ULTRAMEM_VERSION; }
