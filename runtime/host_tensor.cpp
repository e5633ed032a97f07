#include "runtime/host_tensor.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "graph/error.h"

namespace kumi {
namespace {

float from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

float from_f16(uint16_t bits) {
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  const int exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
  if (exponent == 0x1f) return fraction != 0 ? std::nanf("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}

// `data` need not be aligned.
template <typename Stored, typename Convert>
std::vector<float> converted(const void* data, int64_t count, Convert convert) {
  std::vector<float> values(static_cast<size_t>(count));
  const auto* bytes = static_cast<const std::byte*>(data);
  for (size_t i = 0; i < values.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes + i * sizeof stored, sizeof stored);
    values[i] = convert(stored);
  }
  return values;
}

}  // namespace

std::vector<float> as_f32(DType dtype, const void* data, int64_t count) {
  switch (dtype) {
    case DType::F32:
      return converted<float>(data, count, [](float x) { return x; });
    case DType::F64:
      return converted<double>(data, count, [](double x) { return static_cast<float>(x); });
    case DType::BF16:
      return converted<uint16_t>(data, count, from_bf16);
    case DType::F16:
      return converted<uint16_t>(data, count, from_f16);
    default:
      throw Error(concat("elements of type ", to_string(dtype)))
          .expected("a floating type: f32, bf16, f16 or f64");
  }
}

}  // namespace kumi
