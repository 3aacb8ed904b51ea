// The part of ONNX Runtime's C ABI that a custom operator needs, declared here because no wheel ships the headers.
//
// The ABI is append-only: a slot of OrtApi keeps its number and signature in every later release. Numbers are those of
// the public onnxruntime_c_api.h (each function's position in struct OrtApi); all of them exist since API 17.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#else
#define ORT_CALL
#endif

extern "C" {

struct OrtStatus;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtShapeInferContext;

// A table of functions of many types; ort::Call reads one slot.
struct OrtApi {
  void(ORT_CALL* slots[1])();
};

struct OrtApiBase {
  const OrtApi*(ORT_CALL* GetApi)(std::uint32_t version);
  const char*(ORT_CALL* GetVersionString)();
};

struct OrtCustomOp {
  std::uint32_t version;
  void*(ORT_CALL* CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char*(ORT_CALL* GetName)(const OrtCustomOp*);
  const char*(ORT_CALL* GetExecutionProviderType)(const OrtCustomOp*);
  std::int32_t(ORT_CALL* GetInputType)(const OrtCustomOp*, std::size_t index);
  std::size_t(ORT_CALL* GetInputTypeCount)(const OrtCustomOp*);
  std::int32_t(ORT_CALL* GetOutputType)(const OrtCustomOp*, std::size_t index);
  std::size_t(ORT_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(ORT_CALL* KernelCompute)(void* kernel, OrtKernelContext*);
  void(ORT_CALL* KernelDestroy)(void* kernel);
  std::int32_t(ORT_CALL* GetInputCharacteristic)(const OrtCustomOp*, std::size_t index);
  std::int32_t(ORT_CALL* GetOutputCharacteristic)(const OrtCustomOp*, std::size_t index);
  std::int32_t(ORT_CALL* GetInputMemoryType)(const OrtCustomOp*, std::size_t index);
  int(ORT_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(ORT_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(ORT_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(ORT_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus*(ORT_CALL* CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus*(ORT_CALL* KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus*(ORT_CALL* InferOutputShape)(const OrtCustomOp*, OrtShapeInferContext*);
  int(ORT_CALL* GetStartVersion)(const OrtCustomOp*);
  int(ORT_CALL* GetEndVersion)(const OrtCustomOp*);
  // Read by a runtime only where `version` is 18 or more; declared so that the struct has its full size.
  std::size_t(ORT_CALL* GetMayInplace)(int** input_index, int** output_index);
  void(ORT_CALL* ReleaseMayInplace)(int* input_index, int* output_index);
  std::size_t(ORT_CALL* GetAliasMap)(int** input_index, int** output_index);
  void(ORT_CALL* ReleaseAliasMap)(int* input_index, int* output_index);
};

}  // extern "C"

static_assert(sizeof(OrtCustomOp) == 208, "OrtCustomOp: a version and 25 function pointers");
static_assert(sizeof(OrtApiBase) == 16, "OrtApiBase: two function pointers");

namespace ort {

// Runs on 1.17 and later. Asking for more would shut older runtimes out and give us nothing.
constexpr std::uint32_t kApiVersion = 17;

enum ErrorCode : std::int32_t { kInvalidArgument = 2, kRuntimeException = 6, kNotImplemented = 9 };

constexpr std::int32_t kRequired = 0;  // OrtCustomOpInputOutputCharacteristic
constexpr std::int32_t kOptional = 1;
constexpr std::int32_t kDefaultMemory = 0;  // OrtMemType

// One function of OrtApi: `Call<slot, signature>::of(api)(arguments...)`.
template <int kSlot, typename Signature>
struct Call {
  static Signature* of(const OrtApi* api) {
    const auto* slots = static_cast<void(ORT_CALL* const*)()>(api->slots);
    return reinterpret_cast<Signature*>(slots[kSlot]);
  }
};

using CreateStatus = Call<0, OrtStatus*(std::int32_t code, const char* message)>;
using ReleaseStatus = Call<93, void(OrtStatus*)>;

using CreateCustomOpDomain = Call<26, OrtStatus*(const char* name, OrtCustomOpDomain**)>;
using CustomOpDomainAdd = Call<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Call<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;

using HasSessionConfigEntry = Call<237, OrtStatus*(const OrtSessionOptions*, const char* key, int* found)>;
using GetSessionConfigEntry =
    Call<238, OrtStatus*(const OrtSessionOptions*, const char* key, char* value, std::size_t* size)>;

using GetTensorMutableData = Call<51, OrtStatus*(OrtValue*, void** data)>;
using GetTensorElementType = Call<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::int32_t*)>;
using GetDimensionsCount = Call<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t*)>;
using GetDimensions = Call<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t)>;
using GetTensorTypeAndShape = Call<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using ReleaseTensorTypeAndShapeInfo = Call<99, void(OrtTensorTypeAndShapeInfo*)>;

using KernelInfoGetAttributeFloat = Call<85, OrtStatus*(const OrtKernelInfo*, const char* name, float*)>;
using KernelInfoGetAttributeInt = Call<86, OrtStatus*(const OrtKernelInfo*, const char* name, std::int64_t*)>;
using KernelInfoGetConstantInput =
    Call<249, OrtStatus*(const OrtKernelInfo*, std::size_t index, int* is_constant, const OrtValue**)>;
using KernelContextGetInputCount = Call<88, OrtStatus*(const OrtKernelContext*, std::size_t*)>;
using KernelContextGetInput = Call<90, OrtStatus*(const OrtKernelContext*, std::size_t, const OrtValue**)>;
using KernelContextGetOutput =
    Call<91, OrtStatus*(OrtKernelContext*, std::size_t, const std::int64_t* dims, std::size_t rank, OrtValue**)>;
using KernelContextGetGPUComputeStream = Call<193, OrtStatus*(const OrtKernelContext*, void** stream)>;
using KernelContextParallelFor = Call<274, OrtStatus*(const OrtKernelContext*, void (*task)(void* data, std::size_t),
                                                      std::size_t total, std::size_t batches, void* data)>;

}  // namespace ort
