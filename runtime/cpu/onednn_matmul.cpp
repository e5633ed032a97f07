#include "runtime/cpu/onednn_matmul.h"

#include <dnnl_debug.h>
#include <omp.h>
#include <dnnl.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include "graph/error.h"
#include "runtime/cpu/matmul_operands.h"

namespace kumi {
namespace {

constexpr size_t kAlignment = 64;  // bytes

size_t round_up(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// A stack of equal matrices; strides in elements. A batch stride of 0 repeats one matrix.
struct Matrices {
  int64_t batch = 1, rows = 0, columns = 0;
  int64_t batch_stride = 0, row_stride = 0, column_stride = 1;

  int64_t stored_batch() const { return batch_stride == 0 ? 1 : batch; }
  int64_t count() const { return stored_batch() * rows * columns; }
};

// Axes of one element may come with any stride; give them the one that a dense matrix would have,
// so that oneDNN recognizes the layout.
Matrices normalized(Matrices x) {
  if (x.batch == 1) x.batch_stride = 0;
  if (x.columns == 1) x.column_stride = 1;
  if (x.rows == 1) x.row_stride = x.column_stride == 1 ? x.columns : 1;
  if (x.columns == 1) x.row_stride = std::max<int64_t>(x.row_stride, 1);
  return x;
}

// The same matrices without gaps, in the order of the axes that reads `x` most contiguously.
Matrices packed(const Matrices& x) {
  Matrices dense = x;
  bool transposed = x.row_stride < x.column_stride;
  dense.row_stride = transposed ? 1 : x.columns;
  dense.column_stride = transposed ? x.rows : 1;
  dense.batch_stride = x.batch_stride == 0 ? 0 : x.rows * x.columns;
  return dense;
}

struct Operands {
  Matrices a, b, c;
  int64_t n() const { return c.columns; }
};

Operands operands_of(const MatmulCall& call) {
  Operands result;
  result.a = {call.batch, call.m, call.k, call.a_batch_stride, call.a_row_stride, call.a_column_stride};
  result.b = {call.batch, call.k, call.n, call.b_batch_stride, call.b_row_stride, call.b_column_stride};
  result.c = {call.batch, call.m, call.n, call.c_batch_stride, call.c_row_stride, 1};
  // One B for all A, and A and C without a seam between matrices: a single, taller product.
  Matrices &a = result.a, &b = result.b, &c = result.c;
  if (call.batch > 1 && b.batch_stride == 0 && a.batch_stride == a.rows * a.row_stride &&
      c.batch_stride == c.rows * c.row_stride) {
    a.rows *= call.batch;
    c.rows *= call.batch;
    a.batch = b.batch = c.batch = 1;
  }
  result.a = normalized(a);
  result.b = normalized(b);
  result.c = normalized(c);
  return result;
}

// All products of the batch are equal.
bool repeats_both(const Operands& operands) {
  return operands.c.batch > 1 && operands.a.batch_stride == 0 && operands.b.batch_stride == 0;
}

dnnl::memory::desc descriptor(const Matrices& x, bool with_batch, dnnl::memory::data_type type) {
  if (!with_batch)
    return dnnl::memory::desc({x.rows, x.columns}, type, dnnl::memory::dims{x.row_stride, x.column_stride});
  // oneDNN repeats an operand whose batch size is 1; its stride then does not matter, but must not be 0.
  int64_t stride = x.batch_stride == 0 ? x.rows * x.columns : x.batch_stride;
  return dnnl::memory::desc({x.stored_batch(), x.rows, x.columns}, type,
                            dnnl::memory::dims{stride, x.row_stride, x.column_stride});
}

// Visits every pair of rows, or of columns where those are the contiguous ones: f(from, from_stride, to,
// to_stride, count) with offsets and strides in elements.
template <typename Function>
void for_each_line(const Matrices& from, const Matrices& to, int threads, const Function& f) {
  bool transposed = from.row_stride < from.column_stride;
  int64_t lines = transposed ? from.columns : from.rows, length = transposed ? from.rows : from.columns;
  int64_t from_line = transposed ? from.column_stride : from.row_stride;
  int64_t from_element = transposed ? from.row_stride : from.column_stride;
  int64_t to_line = transposed ? to.column_stride : to.row_stride;
  int64_t to_element = transposed ? to.row_stride : to.column_stride;
  int64_t total = to.stored_batch() * lines;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < total; ++i) {
    int64_t b = i / lines, line = i % lines;
    f(b * from.batch_stride + line * from_line, from_element, b * to.batch_stride + line * to_line,
      to_element, length);
  }
}

// From the call's layout and element type to dense f32.
template <typename T>
void pack(const T* from, const Matrices& from_layout, float* to, const Matrices& to_layout, int threads) {
  for_each_line(
      from_layout, to_layout, threads,
      [=](int64_t source, int64_t source_stride, int64_t target, int64_t target_stride, int64_t count) {
        if (source_stride == 1 && target_stride == 1) {
          for (int64_t i = 0; i < count; ++i) to[target + i] = to_f32(from[source + i]);
          return;
        }
        for (int64_t i = 0; i < count; ++i)
          to[target + i * target_stride] = to_f32(from[source + i * source_stride]);
      });
}

// And back, for the result, or added to it.
template <typename T>
void unpack(const float* from, const Matrices& from_layout, T* to, const Matrices& to_layout, bool accumulate,
            int threads) {
  for_each_line(from_layout, to_layout, threads,
                [=](int64_t source, int64_t, int64_t target, int64_t, int64_t count) {
                  for (int64_t i = 0; i < count; ++i) {
                    const float before = accumulate ? to_f32(to[target + i]) : 0;
                    to[target + i] = from_f32<T>(from[source + i] + before);
                  }
                });
}

// A oneDNN primitive with its memory objects, which only need addresses.
class PreparedMatmul {
 public:
  // Nothing if oneDNN has only its reference loops for this, or nothing at all.
  static std::optional<PreparedMatmul> make(const Operands& operands, dnnl::memory::data_type type,
                                            dnnl::memory::data_type result_type, bool bias, bool accumulate) {
    if (repeats_both(operands)) return std::nullopt;
    const bool with_batch = operands.c.batch > 1;
    dnnl::memory::desc a = descriptor(operands.a, with_batch, type),
                       b = descriptor(operands.b, with_batch, type),
                       c = descriptor(operands.c, with_batch, result_type), bias_row;
    if (bias) {
      Matrices row = {
          .batch = 1, .rows = 1, .columns = operands.n(), .batch_stride = 0, .row_stride = operands.n()};
      bias_row = descriptor(row, with_batch, type);
    }
    dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (accumulate) {
      dnnl::post_ops after;
      after.append_sum();
      attributes.set_post_ops(after);
    }
    dnnl::matmul::desc what = bias ? dnnl::matmul::desc(a, b, bias_row, c) : dnnl::matmul::desc(a, b, c);
    dnnl::matmul::primitive_desc how(what, attributes, engine, /*allow_empty=*/true);
    if (!how || std::string_view(how.impl_info_str()).starts_with("ref")) return std::nullopt;

    PreparedMatmul result;
    result.stream_ = dnnl::stream(engine);
    result.primitive_ = dnnl::matmul(how);
    result.bias_ = bias;
    result.scratchpad_bytes_ = how.scratchpad_desc().get_size();
    const std::pair<int, dnnl::memory::desc> arguments[] = {{DNNL_ARG_SRC, a},
                                                            {DNNL_ARG_WEIGHTS, b},
                                                            {DNNL_ARG_DST, c},
                                                            {DNNL_ARG_SCRATCHPAD, how.scratchpad_desc()},
                                                            {DNNL_ARG_BIAS, bias_row}};
    for (size_t i = 0; i < (bias ? 5 : 4); ++i) {
      result.memories_[i] = dnnl::memory(arguments[i].second, engine, DNNL_MEMORY_NONE);
      result.arguments_[i] = {arguments[i].first, result.memories_[i].get()};
    }
    return result;
  }

  size_t scratchpad_bytes() const { return scratchpad_bytes_; }

  void run(const void* a, const void* b, const void* bias, void* c, void* scratchpad) {
    // oneDNN's handles are not const, but only C and the scratchpad are written.
    void* const addresses[] = {const_cast<void*>(a), const_cast<void*>(b), c, scratchpad,
                               const_cast<void*>(bias)};
    const int count = bias_ ? 5 : 4;
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < count && status == dnnl_success; ++i)
      status = dnnl_memory_set_data_handle_v2(arguments_[i].memory, addresses[i], stream_.get());
    // The C interface: the C++ one makes a map and a vector for each call.
    if (status == dnnl_success)
      status = dnnl_primitive_execute(primitive_.get(), stream_.get(), count, arguments_.data());
    if (status == dnnl_success) status = dnnl_stream_wait(stream_.get());
    if (status != dnnl_success)
      throw Error(concat("oneDNN cannot run a matrix product: ", dnnl_status2str(status)));
  }

 private:
  dnnl::stream stream_;
  dnnl::matmul primitive_;
  bool bias_ = false;
  size_t scratchpad_bytes_ = 0;
  std::array<dnnl::memory, 5> memories_;  // A, B, C, scratchpad, bias
  std::array<dnnl_exec_arg_t, 5> arguments_ = {};
};

// oneDNN's code works on the call's own matrices.
class DirectMatmul : public Callable {
 public:
  DirectMatmul(PreparedMatmul prepared, bool bias, int threads, std::shared_ptr<ScratchMemory> scratch)
      : prepared_(std::move(prepared)), bias_(bias), threads_(threads), scratch_(std::move(scratch)) {
    scratch_->reserve(prepared_.scratchpad_bytes());
  }

  void run(void* const* buffers) override {
    omp_set_num_threads(threads_);  // a setting of the calling thread, which may be a new one
    prepared_.run(buffers[0], buffers[1], bias_ ? buffers[2] : nullptr, buffers[bias_ ? 3 : 2],
                  scratch_->data());
  }

 private:
  PreparedMatmul prepared_;
  bool bias_;
  int threads_;
  std::shared_ptr<ScratchMemory> scratch_;
};

// The product of dense f32 copies, for T = uint16_t (bf16) where the machine has no bf16 arithmetic, or for
// float in a layout that oneDNN is slow with.
template <typename T, typename Result>
class PackedMatmul : public Callable {
 public:
  PackedMatmul(const Operands& operands, bool bias, bool accumulate, int threads,
               std::shared_ptr<ScratchMemory> scratch)
      : given_(operands),
        dense_{normalized(packed(operands.a)), normalized(packed(operands.b)),
               normalized(packed(operands.c))},
        bias_(bias),
        accumulate_(accumulate),
        threads_(threads),
        scratch_(std::move(scratch)) {
    // oneDNN repeats one operand, not both.
    if (repeats_both(operands)) dense_.a.batch_stride = dense_.a.rows * dense_.a.columns;
    prepared_ = PreparedMatmul::make(dense_, dnnl::memory::data_type::f32, dnnl::memory::data_type::f32, bias,
                                     /*accumulate=*/false);
    if (!prepared_) throw Error("oneDNN has no code for a dense f32 matrix product on this machine");
    size_t bytes = 0;
    auto place = [&](size_t size) { return std::exchange(bytes, bytes + round_up(size)); };
    a_at_ = place(dense_.a.count() * sizeof(float));
    b_at_ = place(dense_.b.count() * sizeof(float));
    c_at_ = place(dense_.c.count() * sizeof(float));
    bias_at_ = place(bias ? operands.n() * sizeof(float) : 0);
    scratchpad_at_ = place(prepared_->scratchpad_bytes());
    scratch_->reserve(bytes);
  }

  void run(void* const* buffers) override {
    omp_set_num_threads(threads_);  // a setting of the calling thread, which may be a new one
    std::byte* scratch = scratch_->data();
    float* a = reinterpret_cast<float*>(scratch + a_at_);
    float* b = reinterpret_cast<float*>(scratch + b_at_);
    float* c = reinterpret_cast<float*>(scratch + c_at_);
    float* bias = reinterpret_cast<float*>(scratch + bias_at_);
    pack(static_cast<const T*>(buffers[0]), given_.a, a, dense_.a, threads_);
    pack(static_cast<const T*>(buffers[1]), given_.b, b, dense_.b, threads_);
    if (bias_)
      for (int64_t i = 0; i < given_.n(); ++i) bias[i] = to_f32(static_cast<const T*>(buffers[2])[i]);
    prepared_->run(a, b, bias, c, scratch + scratchpad_at_);
    unpack(c, dense_.c, static_cast<Result*>(buffers[bias_ ? 3 : 2]), given_.c, accumulate_, threads_);
  }

 private:
  Operands given_, dense_;
  bool bias_, accumulate_;
  int threads_;
  std::shared_ptr<ScratchMemory> scratch_;
  std::optional<PreparedMatmul> prepared_;
  size_t a_at_ = 0, b_at_ = 0, c_at_ = 0, bias_at_ = 0, scratchpad_at_ = 0;  // bytes into the scratch
};

// No terms to sum: every row of C is the bias, or 0, or what it was. With nothing in C, too, it does nothing.
class EmptyMatmul : public Callable {
 public:
  explicit EmptyMatmul(const MatmulCall& call) : call_(call) {}

  void run(void* const* buffers) override {
    const int64_t size = size_of(call_.result_dtype);
    auto* c = static_cast<std::byte*>(buffers[call_.bias ? 3 : 2]);
    for (int64_t b = 0; b < call_.batch; ++b)
      for (int64_t i = 0; i < call_.m; ++i) {
        std::byte* row = c + (b * call_.c_batch_stride + i * call_.c_row_stride) * size;
        if (call_.n == 0) continue;
        if (!call_.accumulate) memset(row, 0, static_cast<size_t>(call_.n * size));
        for (int64_t j = 0; call_.bias && j < call_.n; ++j) add_bias(buffers[2], j, row);
      }
  }

 private:
  void add_bias(const void* bias, int64_t j, void* row) const {
    const bool narrow = call_.dtype == DType::BF16;
    const float value =
        narrow ? to_f32(static_cast<const uint16_t*>(bias)[j]) : static_cast<const float*>(bias)[j];
    if (call_.result_dtype == DType::BF16)
      static_cast<uint16_t*>(row)[j] = to_bf16(to_f32(static_cast<uint16_t*>(row)[j]) + value);
    else
      static_cast<float*>(row)[j] += value;
  }

  MatmulCall call_;
};

}  // namespace

void ScratchMemory::Free::operator()(std::byte* memory) const {
  std::free(memory);
}

void ScratchMemory::reserve(size_t bytes) {
  if (bytes <= bytes_) return;
  data_.reset();
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, round_up(bytes))));
  bytes_ = data_ == nullptr ? 0 : bytes;
  if (data_ == nullptr) throw Error(concat("cannot allocate ", bytes, " bytes to prepare a matrix product"));
}

std::unique_ptr<Callable> make_onednn_matmul(const MatmulCall& call, int threads,
                                             std::shared_ptr<ScratchMemory> scratch) {
  check_matmul(call);
  if (call.batch == 0 || call.m == 0 || call.n == 0 || call.k == 0)
    return std::make_unique<EmptyMatmul>(call);
  omp_set_num_threads(threads);  // some of oneDNN's choices are made when the primitive is
  try {
    Operands operands = operands_of(call);
    auto type_of = [](DType dtype) {
      return dtype == DType::F32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
    };
    if (auto prepared = PreparedMatmul::make(operands, type_of(call.dtype), type_of(call.result_dtype),
                                             call.bias, call.accumulate))
      return std::make_unique<DirectMatmul>(std::move(*prepared), call.bias, threads, std::move(scratch));
    auto packed = [&]<typename T, typename Result>(T, Result) {
      return std::make_unique<PackedMatmul<T, Result>>(operands, call.bias, call.accumulate, threads,
                                                       std::move(scratch));
    };
    if (call.dtype == DType::F32) return packed(float(), float());
    if (call.result_dtype == DType::F32) return packed(uint16_t(), float());
    return packed(uint16_t(), uint16_t());
  } catch (const dnnl::error& failure) {
    throw Error(concat("oneDNN cannot prepare a matrix product of ", call.batch, " x (", call.m, " x ",
                       call.k, ") (", call.k, " x ", call.n, "): ", failure.what()));
  }
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return concat(version->major, ".", version->minor, ".", version->patch);
}

}  // namespace kumi
