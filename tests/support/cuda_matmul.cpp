#include "tests/support/cuda_matmul.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

namespace kumi::testing {
namespace {

// From f32 and back, exact for the numbers of MatmulValues.
std::vector<std::byte> to_bytes(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(size_of(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::F32) {
      memcpy(&bytes[4 * i], &values[i], 4);
      continue;
    }
    const uint16_t narrow = dtype == DType::F16
                                ? std::bit_cast<uint16_t>(static_cast<_Float16>(values[i]))
                                : static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
    memcpy(&bytes[2 * i], &narrow, 2);
  }
  return bytes;
}

std::vector<float> to_floats(const std::vector<std::byte>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(size_of(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::F32) {
      memcpy(&values[i], &bytes[4 * i], 4);
      continue;
    }
    uint16_t narrow = 0;
    memcpy(&narrow, &bytes[2 * i], 2);
    values[i] = dtype == DType::F16 ? static_cast<float>(std::bit_cast<_Float16>(narrow))
                                    : std::bit_cast<float>(uint32_t{narrow} << 16);
  }
  return values;
}

}  // namespace

std::vector<float> run_matmul(Device& device, Callable& product, const MatmulValues& values, size_t shift) {
  std::vector<std::vector<std::byte>> hosts = {to_bytes(values.a, values.call.dtype),
                                               to_bytes(values.b, values.call.dtype)};
  if (values.call.bias) hosts.push_back(to_bytes(values.bias, values.call.dtype));
  hosts.push_back(to_bytes(values.c, values.call.result_dtype));
  std::vector<void*> pieces, buffers;
  for (const std::vector<std::byte>& host : hosts) {
    pieces.push_back(device.allocate(host.size() + shift));
    buffers.push_back(static_cast<std::byte*>(pieces.back()) + shift);
    device.copy_from_host(buffers.back(), host.data(), host.size());
  }
  product.run(buffers.data());
  device.copy_to_host(hosts.back().data(), buffers.back(), hosts.back().size());
  for (void* piece : pieces) device.free(piece);
  return to_floats(hosts.back(), values.call.result_dtype);
}

void expect_matmul_is_right(Device& device, const MatmulCall& call, unsigned seed) {
  const MatmulValues values(call, seed);
  auto product = device.matmul(call);
  const std::vector<float> result = run_matmul(device, *product, values);
  const std::vector<double> expected = values.expected();
  // Sums are in f32; then the result is rounded to its type.
  const double of_type = call.result_dtype == DType::BF16  ? 0x1p-8
                         : call.result_dtype == DType::F16 ? 0x1p-11
                                                           : 0;
  const double of_sum = 0x1p-23 * std::sqrt(static_cast<double>(call.k)) * 4;
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(result[i], expected[i], (of_type + of_sum) * (1 + std::abs(expected[i])))
        << "element " << i << " with seed " << seed;
}

}  // namespace kumi::testing
