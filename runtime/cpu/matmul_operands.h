// What matrix products on the host have in common: which calls make sense, and the element types.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "codegen/kernel.h"

namespace kumi {

// Throws Error if the call's types, sizes or strides make no sense: products are of f32 or bf16, strides are
// not negative, results do not overlap.
void check_matmul(const MatmulCall& call);

inline float to_f32(uint16_t bf16) {
  return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16);
}
inline float to_f32(float value) {
  return value;
}

// To the nearest, ties to even.
inline uint16_t to_bf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

template <typename T>
T from_f32(float value) {
  if constexpr (std::is_same_v<T, float>)
    return value;
  else
    return to_bf16(value);
}

}  // namespace kumi
