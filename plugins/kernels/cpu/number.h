// Half-precision storage types and their scalar conversions.
//
// Everything with code in it lives in an unnamed namespace, here and in the kernels: each instruction set compiles its
// own copy, and a copy shared by the linker could bring AVX-512 to a machine without it.
#pragma once

#include <cstdint>
#include <cstring>

namespace ultramem {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

namespace {

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return from_bits(static_cast<std::uint32_t>(value.bits) << 16); }

inline float to_float(Half value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Reading the bits as a float leaves the exponent 112 too small; the product mends it, subnormals included.
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));
}

inline void from_float(float value, float* out) { *out = value; }

// Rounds to nearest, ties to even, as the F16C instructions do.
inline void from_float(float value, Half* out) {
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
}

}  // namespace
}  // namespace ultramem
