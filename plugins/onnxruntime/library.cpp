// The library's exported functions: RegisterCustomOps for ONNX Runtime, two questions for whoever wants to know.
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "../operators.h"
#include "../shapes.h"
#include "custom_op.h"

#define ULTRAMEM_EXPORT extern "C" __attribute__((visibility("default")))

namespace ultramem::onnxruntime {
namespace {

// The session option that says where tables lie.
constexpr const char* kTables = "ultramem.tables";

// A domain and the operators in it, which sessions refer to for as long as they live: never freed.
struct Domain {
  OrtCustomOpDomain* host = nullptr;
  std::vector<std::unique_ptr<CustomOp>> ops;
};

Domain* make_domain(const OrtApi* api, UltramemTables tables) {
  auto domain = std::make_unique<Domain>();
  check(ort::CreateCustomOpDomain::of(api)(operators::kDomain, &domain->host));
  for (const Registered& each : registered()) {
    for (auto& op : combinations(each, tables)) {
      check(ort::CustomOpDomainAdd::of(api)(domain->host, op.get()));
      domain->ops.push_back(std::move(op));
    }
  }
  return domain.release();
}

// One domain for each runtime in the process and each wish for tables, however many sessions it opens.
Domain& domain_of(const OrtApi* api, UltramemTables tables) {
  static std::mutex mutex;
  static auto& domains = *new std::map<std::pair<const OrtApi*, UltramemTables>, Domain*>;
  const std::lock_guard<std::mutex> lock(mutex);
  Domain*& domain = domains[{api, tables}];
  if (domain == nullptr) domain = make_domain(api, tables);
  return *domain;
}

// The session's own entry, else the environment's; "auto" where there is neither.
std::string wanted_tables(const OrtApi* api, const OrtSessionOptions* options) {
  int found = 0;
  check(ort::HasSessionConfigEntry::of(api)(options, kTables, &found));
  if (found == 0) {
    const char* named = std::getenv("ULTRAMEM_TABLES");
    return named == nullptr || *named == '\0' ? "auto" : named;
  }
  char text[64] = {};
  std::size_t size = sizeof text;
  check(ort::GetSessionConfigEntry::of(api)(options, kTables, text, &size));
  return text;
}

UltramemTables tables_of(const OrtApi* api, const OrtSessionOptions* options) {
  const std::string wanted = wanted_tables(api, options);
  const int tables = ultramem_tables_named(wanted.c_str());
  if (tables >= 0) return static_cast<UltramemTables>(tables);
  throw BadInput(std::string(kTables) + " (or ULTRAMEM_TABLES): expected auto, resident or mapped, found " + wanted);
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
    return ort::AddCustomOpDomain::of(api)(options, domain_of(api, tables_of(api, options)).host);
  } catch (const HostError& error) {
    return error.status;
  } catch (const ultramem::BadInput& error) {
    return ort::CreateStatus::of(api)(ort::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return ort::CreateStatus::of(api)(ort::kRuntimeException, error.what());
  }
}

// The version of the package that this library belongs to.
ULTRAMEM_EXPORT const char* ultramem_version() { return ULTRAMEM_VERSION; }
