// Storage types of 16 and 8 bits: how they become float and float becomes them, by their bits, on CPU and GPU.
//
// Everything with code in it lives in an unnamed namespace, here and in the CPU's kernels: each instruction set
// compiles its own copy, and a copy shared by the linker could bring AVX-512 to a machine without it.
#pragma once

#include <cstdint>
#include <cstring>

#include "target.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace ultramem {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};
struct Int8 {
  std::int8_t code;
};
struct Float8 {
  std::uint8_t bits;  // e4m3: no infinity, NaN where all but the sign is 1
};

namespace {

ULTRAMEM_BLOCK float from_bits(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

ULTRAMEM_BLOCK std::uint32_t to_bits(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

ULTRAMEM_BLOCK float to_float(float value) { return value; }

ULTRAMEM_BLOCK float to_float(BFloat16 value) { return from_bits(static_cast<std::uint32_t>(value.bits) << 16); }

ULTRAMEM_BLOCK float to_float(Half value) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(value.bits));
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Reading the bits as a float leaves the exponent 112 too small; the product mends it, subnormals included.
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));
#endif
}

ULTRAMEM_BLOCK float to_float(Int8 value) { return value.code; }

ULTRAMEM_BLOCK float to_float(Float8 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x80u) << 24;
  const std::uint32_t magnitude = value.bits & 0x7fu;
  if (magnitude == 0x7fu) return from_bits(sign | 0x7fc00000u);
  // Below 8 the exponent is 0 and the number a multiple of 2^-9; the float's exponent is 120 above.
  const float size =
      magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9f : from_bits((magnitude << 20) + (120u << 23));
  return sign == 0 ? size : -size;
}

ULTRAMEM_BLOCK void from_float(float value, float* out) { *out = value; }

// Rounds to nearest, ties to even, as the F16C instructions do; a NaN stays one.
ULTRAMEM_BLOCK void from_float(float value, Half* out) {
#ifdef __CUDACC__
  out->bits = __half_as_ushort(__float2half_rn(value));
#else
  const std::uint32_t bits = to_bits(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x47800000u) {  // 65536 and more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal halves: adding 0.5 aligns the last bit to 2^-24 and rounds
    half = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  out->bits = static_cast<std::uint16_t>(sign | half);
#endif
}

ULTRAMEM_BLOCK void from_float(float value, BFloat16* out) {
  const std::uint32_t bits = to_bits(value);
  const std::uint32_t rounded = value == value ? bits + 0x7fffu + (bits >> 16 & 1u) : bits | 0x400000u;
  out->bits = static_cast<std::uint16_t>(rounded >> 16);
}

}  // namespace
}  // namespace ultramem
