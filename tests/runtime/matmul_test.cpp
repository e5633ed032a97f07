// Matrix products of every device against double precision: layouts, batches, element types, what is added.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "graph/error.h"
#include "runtime/device.h"
#include "tests/support/device_test.h"
#include "tests/support/matmul_cases.h"

namespace kumi {
namespace {

using testing::dense_matmul;
using testing::MatmulCase;
using testing::message_of;

std::vector<MatmulCase> matmul_cases() {
  std::vector<MatmulCase> cases = {
      {"plain", dense_matmul(1, 37, 41, 53)},
      {"transposed A", dense_matmul(1, 37, 41, 53, true)},
      {"transposed B", dense_matmul(1, 37, 41, 53, false, true)},
      {"both transposed", dense_matmul(1, 37, 41, 53, true, true)},
      {"batched", dense_matmul(5, 17, 19, 23)},
      {"batched, transposed A", dense_matmul(5, 17, 19, 23, true)},
      {"batched, transposed B", dense_matmul(5, 17, 19, 23, false, true)},
      {"batched, both transposed", dense_matmul(5, 17, 19, 23, true, true)},
      {"large enough for threads", dense_matmul(1, 100, 150, 200)},
      {"weight gradient", dense_matmul(1, 64, 96, 1000, true)},
      {"one row", dense_matmul(1, 1, 33, 17)},
      {"one row, transposed B", dense_matmul(1, 1, 33, 17, false, true)},
      {"one row, large enough for threads", dense_matmul(1, 1, 300, 700)},
      {"one row, transposed B, large enough for threads", dense_matmul(1, 1, 300, 700, false, true)},
      {"one row, whole blocks", dense_matmul(1, 1, 128, 256)},
      {"one row of each", dense_matmul(3, 1, 20, 30)},
      {"one column", dense_matmul(1, 33, 1, 17)},
      {"one column, transposed A", dense_matmul(3, 33, 1, 17, true)},
      {"outer product", dense_matmul(1, 33, 17, 1)},
      {"outer product, transposed", dense_matmul(2, 33, 17, 1, true, true)},
      {"one element", dense_matmul(1, 1, 1, 1)},
      {"no rows", dense_matmul(1, 0, 5, 7)},
      {"no columns", dense_matmul(1, 5, 0, 7)},
      {"no terms", dense_matmul(2, 5, 6, 0)},
      {"no batch", dense_matmul(0, 5, 6, 7)},
  };
  MatmulCall call = dense_matmul(4, 9, 10, 11);
  call.b_batch_stride = 0;
  cases.push_back({"one B for all, folded", call});
  call.c_batch_stride += 3;
  cases.push_back({"one B for all, gaps in C", call});
  call = dense_matmul(4, 9, 10, 11);
  call.a_batch_stride = 0;
  cases.push_back({"one A for all", call});
  call.b_batch_stride = 0;
  cases.push_back({"one A and one B for all", call});
  for (const MatmulCase& one : testing::strided_matmul_cases()) cases.push_back(one);
  call = dense_matmul(1, 1, 15, 10);
  call.a_column_stride = 3, call.b_row_stride = 18;
  cases.push_back({"one row, strided, padded rows", call});
  call.b_row_stride = 1, call.b_column_stride = 13;
  cases.push_back({"one row, strided, padded columns", call});
  call = dense_matmul(2, 20, 15, 10);
  call.a_row_stride = 24, call.a_column_stride = 2, call.a_batch_stride = 500;
  call.b_row_stride = 3, call.b_column_stride = 31, call.b_batch_stride = 470;
  cases.push_back({"contiguous along no axis", call});
  return cases;
}

uint16_t to_bf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
float from_bf16(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// Elements in memory of the device, as f32 or bf16; all values must be exact in bf16.
class Operand {
 public:
  Operand(Device* device, DType dtype, const std::vector<float>& values)
      : device_(device), dtype_(dtype), count_(values.size()) {
    memory_ = device->allocate(count_ * size_of(dtype));
    if (dtype == DType::F32) {
      device->copy_from_host(memory_, values.data(), count_ * sizeof(float));
    } else {
      std::vector<uint16_t> narrow;
      for (float value : values) narrow.push_back(to_bf16(value));
      device->copy_from_host(memory_, narrow.data(), count_ * sizeof(uint16_t));
    }
  }
  ~Operand() { device_->free(memory_); }
  Operand(const Operand&) = delete;
  Operand& operator=(const Operand&) = delete;

  void* memory() const { return memory_; }
  std::vector<float> values() const {
    std::vector<float> wide(count_);
    if (dtype_ == DType::F32) {
      device_->copy_to_host(wide.data(), memory_, count_ * sizeof(float));
      return wide;
    }
    std::vector<uint16_t> narrow(count_);
    device_->copy_to_host(narrow.data(), memory_, count_ * sizeof(uint16_t));
    std::transform(narrow.begin(), narrow.end(), wide.begin(), from_bf16);
    return wide;
  }

 private:
  Device* device_;
  DType dtype_;
  size_t count_;
  void* memory_ = nullptr;
};

// How far the last element of an axis is from the first.
int64_t reach(int64_t count, int64_t stride) {
  return std::max<int64_t>(count - 1, 0) * stride;
}

// What one case multiplies and adds up, all exact in bf16, and the plain products.
struct Values {
  std::vector<float> a, b, bias, before;
  std::vector<double> products;  // in C's places

  Values(const MatmulCall& call, std::mt19937* random) {
    a.resize(reach(call.batch, call.a_batch_stride) + reach(call.m, call.a_row_stride) +
             reach(call.k, call.a_column_stride) + 1);
    b.resize(reach(call.batch, call.b_batch_stride) + reach(call.k, call.b_row_stride) +
             reach(call.n, call.b_column_stride) + 1);
    bias.resize(call.n + 1);
    before.resize(reach(call.batch, call.c_batch_stride) + reach(call.m, call.c_row_stride) + call.n + 1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (std::vector<float>* values : {&a, &b, &bias, &before})
      for (float& value : *values) value = from_bf16(to_bf16(uniform(*random)));
    products.resize(before.size());
    for (int64_t batch = 0; batch < call.batch; ++batch)
      for (int64_t i = 0; i < call.m; ++i)
        for (int64_t j = 0; j < call.n; ++j) {
          const float* row = &a[batch * call.a_batch_stride + i * call.a_row_stride];
          const float* column = &b[batch * call.b_batch_stride + j * call.b_column_stride];
          double sum = 0;
          for (int64_t l = 0; l < call.k; ++l)
            sum += static_cast<double>(row[l * call.a_column_stride]) * column[l * call.b_row_stride];
          products[batch * call.c_batch_stride + i * call.c_row_stride + j] = sum;
        }
  }
};

class MatmulTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { device_ = open_device(GetParam()); }
  void expect_close(const MatmulCall& call, const Values& values);

  std::unique_ptr<Device> device_;
};

void MatmulTest::expect_close(const MatmulCall& call, const Values& values) {
  auto product = device_->matmul(call);
  const Operand a(device_.get(), call.dtype, values.a), b(device_.get(), call.dtype, values.b),
      bias(device_.get(), call.dtype, values.bias);
  std::vector<float> results[2];  // the same bits twice
  for (std::vector<float>& result : results) {
    const Operand c(device_.get(), call.result_dtype, values.before);
    std::vector<void*> buffers = {a.memory(), b.memory()};
    if (call.bias) buffers.push_back(bias.memory());
    buffers.push_back(c.memory());
    product->run(buffers.data());
    result = c.values();
  }
  EXPECT_EQ(memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)), 0);

  // What lies between C's rows must stay.
  std::vector<double> expected(values.before.begin(), values.before.end());
  for (int64_t batch = 0; batch < call.batch; ++batch)
    for (int64_t i = 0; i < call.m; ++i)
      for (int64_t j = 0; j < call.n; ++j) {
        const size_t at = batch * call.c_batch_stride + i * call.c_row_stride + j;
        expected[at] = values.products[at] + (call.bias ? values.bias[j] : 0.0) +
                       (call.accumulate ? values.before[at] : 0.0);
      }
  const double tolerance = call.result_dtype == DType::F32 ? 1e-6 * std::sqrt(call.k + 1.0) : 4e-3;
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(results[0][i], expected[i], tolerance * (1 + std::abs(expected[i]))) << "element " << i;
}

TEST_P(MatmulTest, MatchesDoublePrecision) {
  std::mt19937 random(3);
  const std::pair<DType, DType> types[] = {
      {DType::F32, DType::F32}, {DType::BF16, DType::BF16}, {DType::BF16, DType::F32}};
  for (const MatmulCase& c : matmul_cases()) {
    const Values values(c.call, &random);
    for (const bool bias : {false, true})
      for (const bool accumulate : {false, true})
        for (const auto& [dtype, result_dtype] : types) {
          MatmulCall call = c.call;
          call.bias = bias;
          call.accumulate = accumulate;
          call.dtype = dtype;
          call.result_dtype = result_dtype;
          SCOPED_TRACE(concat(c.name, bias ? ", bias" : "", accumulate ? ", accumulate" : "", ", ",
                              to_string(dtype), " to ", to_string(result_dtype)));
          expect_close(call, values);
          if (HasFatalFailure()) return;
        }
  }
}

TEST_P(MatmulTest, ImpossibleProductsAreErrors) {
  MatmulCall call = dense_matmul(1, 4, 4, 4);
  call.dtype = DType::F64;
  EXPECT_NE(message_of([&] { device_->matmul(call); }).find("f64 is not supported"), std::string::npos);
  call = dense_matmul(1, 4, 4, 4);
  call.c_row_stride = 3;
  EXPECT_NE(message_of([&] { device_->matmul(call); }).find("overlap"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Devices, MatmulTest, ::testing::Values("cpu", "cuda_emu"),
                         [](const auto& instance) { return instance.param; });

}  // namespace
}  // namespace kumi
