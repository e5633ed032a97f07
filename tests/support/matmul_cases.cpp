#include "tests/support/matmul_cases.h"

#include <random>

namespace kumi::testing {
namespace {

size_t elements(int64_t batch, int64_t batch_stride, int64_t rows, int64_t row_stride, int64_t columns,
                int64_t column_stride) {
  return static_cast<size_t>((batch - 1) * batch_stride + (rows - 1) * row_stride +
                             (columns - 1) * column_stride + 1);
}

constexpr float kBetweenRows = 99;

}  // namespace

MatmulCall dense_matmul(int64_t batch, int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b) {
  MatmulCall call;
  call.batch = batch, call.m = m, call.n = n, call.k = k;
  call.a_batch_stride = m * k;
  call.a_row_stride = transpose_a ? 1 : k;
  call.a_column_stride = transpose_a ? m : 1;
  call.b_batch_stride = k * n;
  call.b_row_stride = transpose_b ? 1 : n;
  call.b_column_stride = transpose_b ? k : 1;
  call.c_batch_stride = m * n;
  call.c_row_stride = n;
  return call;
}

std::vector<MatmulCase> strided_matmul_cases() {
  std::vector<MatmulCase> cases;
  // Heads side by side, as attention reads them: [seq, heads, width].
  MatmulCall call = dense_matmul(4, 12, 12, 8);
  call.a_batch_stride = 8, call.a_row_stride = 32;
  call.b_batch_stride = 8, call.b_row_stride = 1, call.b_column_stride = 32;
  cases.push_back({"interleaved heads, Q K'", call});
  call = dense_matmul(4, 12, 8, 12);
  call.b_batch_stride = 8, call.b_row_stride = 32;
  call.c_batch_stride = 8, call.c_row_stride = 32;
  cases.push_back({"interleaved heads, P V", call});
  call = dense_matmul(1, 20, 15, 10);
  call.a_row_stride = 13, call.b_row_stride = 18, call.c_row_stride = 17;
  cases.push_back({"padded rows", call});
  return cases;
}

std::vector<MatmulCase> cublas_matmul_cases() {
  std::vector<MatmulCase> cases;
  for (int64_t batch : {1, 3})
    for (bool transpose_a : {false, true})
      for (bool transpose_b : {false, true}) {
        const std::string suffix = std::string(batch == 1 ? "" : ", batched") +
                                   (transpose_a ? ", transposed A" : "") +
                                   (transpose_b ? ", transposed B" : "");
        auto add = [&](const char* name, int64_t m, int64_t n, int64_t k) {
          cases.push_back({name + suffix, dense_matmul(batch, m, n, k, transpose_a, transpose_b)});
        };
        add("plain", 16, 24, 32);
        add("odd sizes", 7, 9, 13);
        add("one row", 1, 24, 16);
        add("one column", 24, 1, 16);
        add("outer product", 8, 16, 1);
        add("dot product", 1, 1, 32);
        add("one element", 1, 1, 1);
      }
  MatmulCall call = dense_matmul(3, 4, 6, 8);
  call.b_batch_stride = 0;
  cases.push_back({"one B for all", call});
  call.a_batch_stride = 0;
  cases.push_back({"one A and one B for all", call});
  for (const MatmulCase& one : strided_matmul_cases()) cases.push_back(one);
  // Along an axis of one element a stride does not matter.
  call = dense_matmul(1, 1, 16, 8);
  call.a_row_stride = 0, call.c_row_stride = 0;
  cases.push_back({"one row of no stride", call});
  call = dense_matmul(2, 4, 16, 1);
  call.a_row_stride = 3, call.a_column_stride = 7, call.a_batch_stride = 12, call.b_row_stride = 1;
  cases.push_back({"one term, strided", call});
  call = dense_matmul(2, 5, 1, 8);
  call.b_row_stride = 3, call.b_column_stride = 5, call.b_batch_stride = 30;
  cases.push_back({"one column, strided", call});
  return cases;
}

MatmulValues::MatmulValues(const MatmulCall& call, unsigned seed) : call(call) {
  a.resize(
      elements(call.batch, call.a_batch_stride, call.m, call.a_row_stride, call.k, call.a_column_stride));
  b.resize(
      elements(call.batch, call.b_batch_stride, call.k, call.b_row_stride, call.n, call.b_column_stride));
  bias.resize(static_cast<size_t>(call.n));
  c.assign(elements(call.batch, call.c_batch_stride, call.m, call.c_row_stride, call.n, 1), kBetweenRows);
  // Multiples of 1/64 between -1 and 1.
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> uniform(-64, 64);
  for (std::vector<float>* values : {&a, &b, &bias})
    for (float& value : *values) value = static_cast<float>(uniform(random)) / 64;
  if (!call.accumulate) return;
  for (int64_t batch = 0; batch < call.batch; ++batch)
    for (int64_t i = 0; i < call.m; ++i)
      for (int64_t j = 0; j < call.n; ++j)
        c[static_cast<size_t>(batch * call.c_batch_stride + i * call.c_row_stride + j)] =
            static_cast<float>(uniform(random)) / 64;
}

std::vector<double> MatmulValues::expected() const {
  std::vector<double> result(c.begin(), c.end());
  for (int64_t batch = 0; batch < call.batch; ++batch)
    for (int64_t i = 0; i < call.m; ++i)
      for (int64_t j = 0; j < call.n; ++j) {
        double& element =
            result[static_cast<size_t>(batch * call.c_batch_stride + i * call.c_row_stride + j)];
        double sum = (call.accumulate ? element : 0) + (call.bias ? bias[static_cast<size_t>(j)] : 0);
        for (int64_t l = 0; l < call.k; ++l) {
          const int64_t at_a = batch * call.a_batch_stride + i * call.a_row_stride + l * call.a_column_stride;
          const int64_t at_b = batch * call.b_batch_stride + l * call.b_row_stride + j * call.b_column_stride;
          sum += static_cast<double>(a[static_cast<size_t>(at_a)]) * b[static_cast<size_t>(at_b)];
        }
        element = sum;
      }
  return result;
}

}  // namespace kumi::testing
