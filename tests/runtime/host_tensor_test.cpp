// Conversion of elements to f32.
#include "runtime/host_tensor.h"

#include <gtest/gtest.h>

#include "graph/type.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "graph/error.h"

namespace kumi {
namespace {

template <typename T>
float converted(DType dtype, T value) {
  // At an odd address, as in a mapped file.
  std::byte bytes[sizeof value + 1];
  std::memcpy(bytes + 1, &value, sizeof value);
  return as_f32(dtype, bytes + 1, 1).at(0);
}

TEST(HostTensor, PrintsShapes) {
  EXPECT_EQ(to_string(std::vector<int64_t>{}), "[]");
  EXPECT_EQ(to_string(std::vector<int64_t>{2, 32}), "[2, 32]");
}

TEST(HostTensor, ConvertsF32AndF64) {
  EXPECT_EQ(converted(DType::F32, 0.1f), 0.1f);
  EXPECT_EQ(converted(DType::F64, 0.1), 0.1f);
  EXPECT_EQ(converted(DType::F64, 1e300), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(converted(DType::F64, std::nan(""))));
  const double values[] = {1, -2, 3};
  EXPECT_EQ(as_f32(DType::F64, values, 3), (std::vector<float>{1, -2, 3}));
  EXPECT_TRUE(as_f32(DType::F32, values, 0).empty());
}

TEST(HostTensor, ConvertsBf16) {
  EXPECT_EQ(converted<uint16_t>(DType::BF16, 0x3F80), 1.0f);
  EXPECT_EQ(converted<uint16_t>(DType::BF16, 0xC049), -3.140625f);
  EXPECT_EQ(converted<uint16_t>(DType::BF16, 0x7F80), std::numeric_limits<float>::infinity());
  EXPECT_EQ(converted<uint16_t>(DType::BF16, 0x0001), std::bit_cast<float>(0x00010000u));
  EXPECT_TRUE(std::isnan(converted<uint16_t>(DType::BF16, 0x7FC0)));
}

TEST(HostTensor, ConvertsF16) {
  const auto f16 = [](uint16_t bits) { return converted(DType::F16, bits); };
  EXPECT_EQ(f16(0x3C00), 1.0f);
  EXPECT_EQ(f16(0xC000), -2.0f);
  EXPECT_EQ(f16(0x3555), 0.333251953125f);
  EXPECT_EQ(f16(0x7BFF), 65504.0f);
  EXPECT_EQ(f16(0x0400), 0x1p-14f);
  EXPECT_EQ(f16(0x03FF), 1023 * 0x1p-24f);
  EXPECT_EQ(f16(0x0001), 0x1p-24f);
  EXPECT_EQ(f16(0x7C00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(f16(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(f16(0x7E00)));
  EXPECT_TRUE(std::isnan(f16(0xFC01)));
  EXPECT_TRUE(std::signbit(f16(0x8000)));
  // Bits in ascending order are numbers in ascending order.
  for (uint16_t bits = 1; bits <= 0x7C00; ++bits) {
    EXPECT_LT(f16(static_cast<uint16_t>(bits - 1)), f16(bits)) << bits;
    EXPECT_EQ(f16(static_cast<uint16_t>(bits | 0x8000)), -f16(bits)) << bits;
  }
}

TEST(HostTensor, RefusesIntegers) {
  const int64_t zero = 0;
  for (const DType dtype : {DType::I32, DType::I64, DType::U8, DType::BOOL})
    EXPECT_THROW(as_f32(dtype, &zero, 1), Error) << to_string(dtype);
}

}  // namespace
}  // namespace kumi
