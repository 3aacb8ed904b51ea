// The C entry points: check the sizes, then hand over to the instruction set that was chosen once.
#include <cstdlib>
#include <cstring>

#include "../problems.h"
#include "attention_scratch.h"
#include "candidate.h"
#include "gate_scratch.h"
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ultramem {
namespace {

constexpr UltramemStatus kBadShape = {ULTRAMEM_BAD_SHAPE, 0, 0, 0};
constexpr UltramemStatus kUnsupportedType = {ULTRAMEM_UNSUPPORTED_TYPE, 0, 0, 0};

#if defined(__x86_64__)
// GCC 10 and older clangs do not know "f16c" by name, so its bit is read directly.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// Nor do they all know "avx512bf16".
bool has_avx512_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1u << 5) != 0;
}
#endif

bool always() { return true; }

struct Level {
  const Isa* isa;
  bool (*available)();
};

// Best first.
constexpr Level kLevels[] = {
#if defined(__x86_64__)
    {&kAvx512Bf16Isa, has_avx512_bf16},
    {&kAvx512Isa, has_avx512},
    {&kAvx2Isa, has_avx2},
#endif
    {&kPlainIsa, always},
};

struct Choice {
  const Isa* isa;
  const char* error;
};

Choice best() {
  for (const Level& level : kLevels) {
    if (level.available()) return {level.isa, nullptr};
  }
  return {&kPlainIsa, nullptr};
}

Choice choose() {
  const char* wanted = std::getenv("ULTRAMEM_CPU");
  if (wanted == nullptr || *wanted == '\0') return best();
  for (const Level& level : kLevels) {
    if (std::strcmp(level.isa->name, wanted) != 0) continue;
    if (level.available()) return {level.isa, nullptr};
    return {best().isa, "ULTRAMEM_CPU asks for an instruction set that this machine lacks; unset it"};
  }
  return {best().isa, "ULTRAMEM_CPU must be plain, avx2, avx512 or avx512_bf16 (the last three on x86-64 alone)"};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

bool is_activation_type(UltramemType type) { return type == ULTRAMEM_FLOAT32 || type == ULTRAMEM_FLOAT16; }

bool is_table_type(UltramemType type) { return ULTRAMEM_FLOAT32 <= type && type <= ULTRAMEM_FLOAT8_E4M3; }

bool is_dense_type(UltramemType type) { return is_activation_type(type) || type == ULTRAMEM_BFLOAT16; }

bool is_within(UltramemRange range, std::int64_t end) {
  return 0 <= range.begin && range.begin <= range.end && range.end <= end;
}

}  // namespace
}  // namespace ultramem

using namespace ultramem;

extern "C" {

const char* ultramem_cpu_isa(void) { return choice().isa->name; }

const char* ultramem_cpu_error(void) { return choice().error; }

size_t ultramem_sparse_lookup_scratch(const UltramemSparseLookup* problem) {
  if (problem->type == ULTRAMEM_FLOAT32) return 0;
  return static_cast<size_t>(problem->blocks * problem->table.width) * sizeof(float);
}

size_t ultramem_sparse_gate_scratch(const UltramemSparseGate* problem) { return GateScratch(*problem, nullptr).bytes; }

size_t ultramem_tucker_topk_scratch(const UltramemTuckerTopK* problem) {
  return TuckerTopKScratch(*problem, nullptr).bytes;
}

size_t ultramem_attention_scratch(const UltramemAttention* problem) {
  return AttentionScratch(*problem, nullptr).bytes;
}

UltramemStatus ultramem_sparse_lookup(const UltramemSparseLookup* problem, UltramemRange tokens, UltramemRange columns,
                                      void* scratch) {
  if (!is_activation_type(problem->type) || !is_table_type(problem->table.type)) return kUnsupportedType;
  if (!is_sound(*problem)) return kBadShape;
  if (!is_within(tokens, problem->tokens) || !is_within(columns, problem->table.width)) return kBadShape;
  if (problem->table.type == ULTRAMEM_INT4 && columns.begin % 2 != 0) return kBadShape;
  return choice().isa->sparse_lookup(*problem, tokens, columns, scratch);
}

UltramemStatus ultramem_sparse_gate(const UltramemSparseGate* problem, UltramemRange pairs, void* scratch) {
  if (!is_activation_type(problem->type) || !is_table_type(problem->table.type)) return kUnsupportedType;
  if (!is_sound(*problem) || !is_within(pairs, problem->tokens * problem->slots)) return kBadShape;
  return choice().isa->sparse_gate(*problem, pairs, scratch);
}

UltramemStatus ultramem_tucker_topk(const UltramemTuckerTopK* problem, UltramemRange items, void* scratch) {
  if (!is_activation_type(problem->type)) return kUnsupportedType;
  if (!is_sound(*problem) || !is_within(items, problem->tokens * problem->heads)) return kBadShape;
  return choice().isa->tucker_topk(*problem, items, scratch);
}

UltramemStatus ultramem_attention(const UltramemAttention* problem, UltramemRange items, void* scratch) {
  if (!is_dense_type(problem->type)) return kUnsupportedType;
  if (!is_sound(*problem) || !is_within(items, problem->batch * problem->kv_heads)) return kBadShape;
  return choice().isa->attention(*problem, items, scratch);
}

UltramemStatus ultramem_linear(const UltramemLinear* problem, UltramemRange columns) {
  const UltramemType type = problem->type, output = problem->output_type;
  if (!is_dense_type(type) || (output != type && output != ULTRAMEM_FLOAT32)) return kUnsupportedType;
  if (!is_sound(*problem) || !is_within(columns, problem->columns)) return kBadShape;
  choice().isa->linear(*problem, columns);
  return {ULTRAMEM_OK, 0, 0, 0};
}

}  // extern "C"
