#include "runtime/cuda_emu/emulated_matmul.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "runtime/cpu/matmul_operands.h"

namespace kumi {
namespace {

// The part of C that is summed up at a time: it and a column of A's and a row of B's fit into registers.
constexpr int64_t kTileRows = 4, kTileColumns = 4;

// `lines` lines of `depth` elements as tiles of `width` lines, those side by side; what a tile has too many
// is 0.
template <typename T>
void pack(const T* from, int64_t lines, int64_t line_stride, int64_t depth, int64_t depth_stride,
          int64_t width, std::vector<double>* to) {
  to->assign(static_cast<size_t>((lines + width - 1) / width * width * depth), 0.0);
  for (int64_t line = 0; line < lines; ++line) {
    double* tile = to->data() + line / width * width * depth + line % width;
    const T* source = from + line * line_stride;
    for (int64_t i = 0; i < depth; ++i)
      tile[i * width] = static_cast<double>(to_f32(source[i * depth_stride]));
  }
}

void multiply_tile(const double* __restrict a, const double* __restrict b, int64_t depth,
                   double* __restrict sums) {
  double tile[kTileRows * kTileColumns] = {};
  for (int64_t i = 0; i < depth; ++i, a += kTileRows, b += kTileColumns)
    for (int64_t row = 0; row < kTileRows; ++row)
      for (int64_t column = 0; column < kTileColumns; ++column)
        tile[row * kTileColumns + column] += a[row] * b[column];
  std::copy(std::begin(tile), std::end(tile), sums);
}

template <typename T, typename R>
class EmulatedMatmul : public Callable {
 public:
  explicit EmulatedMatmul(const MatmulCall& call) : call_(call) {}

  void run(void* const* buffers) override {
    const T* a = static_cast<const T*>(buffers[0]);
    const T* b = static_cast<const T*>(buffers[1]);
    const T* bias = call_.bias ? static_cast<const T*>(buffers[2]) : nullptr;
    R* c = static_cast<R*>(buffers[call_.bias ? 3 : 2]);
    std::vector<double> packed_a, packed_b;
    for (int64_t i = 0; i < call_.batch; ++i) {
      pack(a + i * call_.a_batch_stride, call_.m, call_.a_row_stride, call_.k, call_.a_column_stride,
           kTileRows, &packed_a);
      if (i == 0 || call_.b_batch_stride != 0)
        pack(b + i * call_.b_batch_stride, call_.n, call_.b_column_stride, call_.k, call_.b_row_stride,
             kTileColumns, &packed_b);
      multiply(packed_a, packed_b, bias, c + i * call_.c_batch_stride);
    }
  }

 private:
  void multiply(const std::vector<double>& a, const std::vector<double>& b, const T* bias, R* c) const {
    double sums[kTileRows * kTileColumns];
    for (int64_t column = 0; column < call_.n; column += kTileColumns)
      for (int64_t row = 0; row < call_.m; row += kTileRows) {
        multiply_tile(a.data() + row * call_.k, b.data() + column * call_.k, call_.k, sums);
        for (int64_t i = 0; i < std::min(kTileRows, call_.m - row); ++i)
          for (int64_t j = 0; j < std::min(kTileColumns, call_.n - column); ++j) {
            R& result = c[(row + i) * call_.c_row_stride + column + j];
            double sum = sums[i * kTileColumns + j];
            if (bias != nullptr) sum += static_cast<double>(to_f32(bias[column + j]));
            if (call_.accumulate) sum += static_cast<double>(to_f32(result));
            result = from_f32<R>(static_cast<float>(sum));
          }
      }
  }

  MatmulCall call_;
};

}  // namespace

std::unique_ptr<Callable> make_emulated_matmul(const MatmulCall& call) {
  check_matmul(call);
  if (call.dtype == DType::F32) return std::make_unique<EmulatedMatmul<float, float>>(call);
  if (call.result_dtype == DType::F32) return std::make_unique<EmulatedMatmul<uint16_t, float>>(call);
  return std::make_unique<EmulatedMatmul<uint16_t, uint16_t>>(call);
}

}  // namespace kumi
