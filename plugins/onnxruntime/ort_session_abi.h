// The part of ONNX Runtime's C ABI that a program needs to run a model; see ort_abi.h for why it is declared here.
#pragma once

#include "ort_abi.h"

extern "C" {

struct OrtEnv;
struct OrtSession;
struct OrtRunOptions;
struct OrtMemoryInfo;

}  // extern "C"

namespace ort {

constexpr std::int32_t kLogError = 3;  // OrtLoggingLevel
constexpr std::int32_t kArena = 1;     // OrtAllocatorType: OrtArenaAllocator
constexpr std::int32_t kFloat = 1;     // ONNXTensorElementDataType
constexpr std::int32_t kInt64 = 7;
constexpr std::int32_t kAllOptimisations = 99;

using GetErrorMessage = Call<2, const char*(const OrtStatus*)>;

using CreateEnv = Call<3, OrtStatus*(std::int32_t level, const char* id, OrtEnv**)>;
using CreateSession = Call<7, OrtStatus*(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**)>;
using Run = Call<9, OrtStatus*(OrtSession*, const OrtRunOptions*, const char* const* input_names,
                               const OrtValue* const* inputs, std::size_t input_count, const char* const* output_names,
                               std::size_t output_count, OrtValue** outputs)>;

using CreateSessionOptions = Call<10, OrtStatus*(OrtSessionOptions**)>;
using SetSessionGraphOptimizationLevel = Call<23, OrtStatus*(OrtSessionOptions*, std::int32_t level)>;
using SetIntraOpNumThreads = Call<24, OrtStatus*(OrtSessionOptions*, int threads)>;

using AddSessionConfigEntry = Call<130, OrtStatus*(OrtSessionOptions*, const char* key, const char* value)>;

using CreateRunOptions = Call<39, OrtStatus*(OrtRunOptions**)>;
using RunOptionsSetTerminate = Call<46, OrtStatus*(OrtRunOptions*)>;
using RunOptionsUnsetTerminate = Call<47, OrtStatus*(OrtRunOptions*)>;

using CreateTensorWithDataAsOrtValue =
    Call<49, OrtStatus*(const OrtMemoryInfo*, void* data, std::size_t bytes, const std::int64_t* shape,
                        std::size_t rank, std::int32_t type, OrtValue**)>;
using CreateCpuMemoryInfo = Call<69, OrtStatus*(std::int32_t allocator, std::int32_t memory, OrtMemoryInfo**)>;

using ReleaseSession = Call<95, void(OrtSession*)>;
using ReleaseValue = Call<96, void(OrtValue*)>;
using ReleaseRunOptions = Call<97, void(OrtRunOptions*)>;
using ReleaseSessionOptions = Call<100, void(OrtSessionOptions*)>;

}  // namespace ort
