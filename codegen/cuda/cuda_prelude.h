// The text in front of every kernel of the CUDA dialect: the functions that generated code calls.
//
// It needs no headers, only what CUDA C++ has built in, so that NVRTC compiles it in milliseconds and the
// emulation (codegen/cuda/emulation_prelude.h) can supply the same for the host. A kernel has the signature
//
//   KUMI_KERNEL(symbol, buffer count, threads of a block) { float* x = (float*)buffers.data[0]; ... }
//
// and takes one argument, the addresses of its buffers. Threads work in teams: `threads` next to each other,
// a power of 2 up to 32 or the whole block, that share an iteration of the phase's loop.
#pragma once

namespace kumi {

inline constexpr char kCudaPrelude[] = R"prelude(
#define KUMI_INLINE static __device__ __forceinline__

#define KUMI_INFINITY __builtin_bit_cast(float, 0x7f800000u)  // a constant, also for tables
#define KUMI_INFINITY_F64 __builtin_bit_cast(double, 0x7ff0000000000000ull)
#define KUMI_NAN __uint_as_float(0x7fc00000u)
#define KUMI_NAN_F64 __longlong_as_double(0x7ff8000000000000ll)

template <int kCount>
struct kumi_buffers {
  void* data[kCount];
};
#ifdef KUMI_RESIDENT_THREADS  // of a multiprocessor, at least
#define KUMI_LAUNCH_BOUNDS(threads) \
  __launch_bounds__(threads, (threads) < KUMI_RESIDENT_THREADS ? KUMI_RESIDENT_THREADS / (threads) : 1)
#else
#define KUMI_LAUNCH_BOUNDS(threads) __launch_bounds__(threads)
#endif
#ifndef KUMI_EMULATED
#define KUMI_KERNEL(symbol, count, threads)                         \
  extern "C" __global__ void KUMI_LAUNCH_BOUNDS(threads) symbol(    \
      const __grid_constant__ kumi_buffers<count> buffers)
#define KUMI_DYNAMIC_SHARED(name, bytes)               \
  extern __shared__ __align__(16) char name##_memory[]; \
  const kumi_shared name = kumi_shared_address(name##_memory)
#define KUMI_UNROLL _Pragma("unroll")
#endif


// ---- Element types. Arithmetic is in f32.

struct kumi_bf16 {
  unsigned short bits;
};
KUMI_INLINE float kumi_from_bf16(kumi_bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
KUMI_INLINE kumi_bf16 kumi_to_bf16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  kumi_bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  unsigned bits = __float_as_uint(x);
  unsigned rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return {(unsigned short)(x != x ? bits >> 16 | 0x40u : rounded)};
#endif
}
#ifdef __CUDA_ARCH__
struct kumi_f16 {
  unsigned short bits;
  kumi_f16() = default;
  __device__ __forceinline__ explicit kumi_f16(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ __forceinline__ explicit operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
};
#else
typedef _Float16 kumi_f16;
#endif
// Two bf16 in 32 bits, the first in the lower half.
KUMI_INLINE int kumi_bf16_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  int pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#endif
  unsigned low = kumi_to_bf16(first).bits, high = kumi_to_bf16(second).bits;
  return (int)(low | high << 16);
}
KUMI_INLINE int kumi_exact_bf16_pair(float first, float second) {
  return (int)(__float_as_uint(first) >> 16 | (__float_as_uint(second) & 0xffff0000u));
}
KUMI_INLINE float kumi_round_to_bf16(float x) { return kumi_from_bf16(kumi_to_bf16(x)); }
KUMI_INLINE float kumi_round_to_f16(float x) { return (float)(kumi_f16)x; }

// ---- Functions of an element; NaN wins in maximum and minimum.

KUMI_INLINE float kumi_max(float a, float b) { return a > b || a != a ? a : b; }
KUMI_INLINE float kumi_min(float a, float b) { return a < b || a != a ? a : b; }
KUMI_INLINE float kumi_abs(float x) { return fabsf(x); }
KUMI_INLINE float kumi_floor(float x) { return floorf(x); }
KUMI_INLINE float kumi_sqrt(float x) { return sqrtf(x); }
KUMI_INLINE float kumi_rsqrt(float x) { return 1.0f / sqrtf(x); }
KUMI_INLINE float kumi_exp(float x) { return expf(x); }
KUMI_INLINE float kumi_exp2(float x) { return exp2f(x < -126.0f ? -126.0f : x); }
// Of any x, at the speed of the hardware: to 2 units in the last place, and 0 for what is below 2^-126.
KUMI_INLINE float kumi_fast_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return x < -126.0f ? 0.0f : exp2f(x);
#endif
}
KUMI_INLINE float kumi_log(float x) { return logf(x); }
KUMI_INLINE float kumi_sin(float x) { return sinf(x); }
KUMI_INLINE float kumi_cos(float x) { return cosf(x); }
KUMI_INLINE float kumi_tanh(float x) { return tanhf(x); }
KUMI_INLINE float kumi_pow(float x, float y) { return powf(x, y); }
// The exponential's argument is never positive, so it cannot overflow.
KUMI_INLINE float kumi_sigmoid(float x) {
  float e = expf(-fabsf(x));
  float d = 1.0f / (1.0f + e);
  return x >= 0.0f ? d : e * d;
}
KUMI_INLINE double kumi_max_f64(double a, double b) { return a > b || a != a ? a : b; }
KUMI_INLINE double kumi_min_f64(double a, double b) { return a < b || a != a ? a : b; }
KUMI_INLINE double kumi_abs_f64(double x) { return fabs(x); }
KUMI_INLINE double kumi_floor_f64(double x) { return floor(x); }
KUMI_INLINE double kumi_sqrt_f64(double x) { return sqrt(x); }
KUMI_INLINE double kumi_rsqrt_f64(double x) { return 1.0 / sqrt(x); }
KUMI_INLINE double kumi_exp_f64(double x) { return exp(x); }
KUMI_INLINE double kumi_log_f64(double x) { return log(x); }
KUMI_INLINE double kumi_sin_f64(double x) { return sin(x); }
KUMI_INLINE double kumi_cos_f64(double x) { return cos(x); }
KUMI_INLINE double kumi_tanh_f64(double x) { return tanh(x); }
KUMI_INLINE double kumi_pow_f64(double x, double y) { return pow(x, y); }
KUMI_INLINE double kumi_sigmoid_f64(double x) {
  double e = exp(-fabs(x));
  double d = 1.0 / (1.0 + e);
  return x >= 0.0 ? d : e * d;
}

// ---- Vectors of elements next to each other: one access to memory of up to 16 bytes.

template <int kBytes>
struct kumi_chunk_of;
template <>
struct kumi_chunk_of<1> {
  typedef unsigned char type;
};
template <>
struct kumi_chunk_of<2> {
  typedef unsigned short type;
};
template <>
struct kumi_chunk_of<4> {
  typedef unsigned type;
};
template <>
struct kumi_chunk_of<8> {
  typedef uint2 type;
};
template <>
struct kumi_chunk_of<16> {
  typedef uint4 type;
};
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount > 16 ? 16 : sizeof(T) * kCount) kumi_vector {
  T data[kCount];
};
// `p` is aligned to the vector, or to 16 bytes if it is longer.
template <int kCount, typename T>
KUMI_INLINE kumi_vector<T, kCount> kumi_load_vector(const T* p) {
  constexpr int kBytes = sizeof(T) * kCount > 16 ? 16 : sizeof(T) * kCount;
  typedef typename kumi_chunk_of<kBytes>::type chunk;
  kumi_vector<T, kCount> result;
#pragma unroll
  for (int i = 0; i < (int)sizeof(T) * kCount / kBytes; ++i) ((chunk*)&result)[i] = ((const chunk*)p)[i];
  return result;
}
template <int kCount, typename T>
KUMI_INLINE void kumi_store_vector(T* p, const kumi_vector<T, kCount>& value) {
  constexpr int kBytes = sizeof(T) * kCount > 16 ? 16 : sizeof(T) * kCount;
  typedef typename kumi_chunk_of<kBytes>::type chunk;
#pragma unroll
  for (int i = 0; i < (int)sizeof(T) * kCount / kBytes; ++i) ((chunk*)p)[i] = ((const chunk*)&value)[i];
}

// ---- Reductions over a team: the same bits for all its threads, in an order that the team's size decides.

struct kumi_sum {
  template <typename T>
  static __device__ __forceinline__ T combine(T a, T b) {
    return a + b;
  }
};
// Of floating-point numbers NaN wins.
struct kumi_maximum {
  template <typename T>
  static __device__ __forceinline__ T combine(T a, T b) {
    return a > b || a != a ? a : b;
  }
};
template <typename T>
KUMI_INLINE T kumi_max_reduce(T a, T b) {
  return a > b || a != a ? a : b;
}
template <int kThreads>
KUMI_INLINE unsigned kumi_team_mask() {
  return kThreads >= 32 ? 0xffffffffu : ((1u << (kThreads & 31)) - 1u) << (threadIdx.x % 32 / kThreads * kThreads);
}
template <typename Operation, int kThreads, typename T>
KUMI_INLINE T kumi_team_reduce(T value) {
  constexpr int kLanes = kThreads < 32 ? kThreads : 32;
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value = Operation::combine(value, __shfl_xor_sync(kumi_team_mask<kLanes>(), value, offset));
  if constexpr (kThreads > 32) {
    constexpr int kWarps = kThreads / 32;
    __shared__ T partial[kWarps];
    __syncthreads();  // the values of the last reduction have been read
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[threadIdx.x % kWarps];
#pragma unroll
    for (int offset = kWarps / 2; offset > 0; offset /= 2)
      value = Operation::combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}
// What the threads of a team have written is there for all of them.
template <int kThreads>
KUMI_INLINE void kumi_team_barrier() {
  if constexpr (kThreads > 32)
    __syncthreads();
  else if constexpr (kThreads > 1)
    __syncwarp(kumi_team_mask<kThreads>());
}

// ---- Tensor cores. A warp holds matrices in pieces, "fragments", as the instructions of PTX lay them out: with
// g = lane / 4 and t = lane % 4, of
//   c, 16 x 8 in f32:   c[0], c[1]: row g, columns 2t and 2t + 1; c[2], c[3]: the same of row g + 8
//   a, 16 x 16 in bf16: a[0]: row g, columns 2t and 2t + 1; a[1]: of row g + 8; a[2], a[3]: 8 columns further
//   b, 16 x 8 in bf16:  b[0]: rows 2t and 2t + 1 of column g; b[1]: 8 rows further
// All lanes of the warp call together. From compute capability 8.0 on; others do not compile what uses them.

#ifndef KUMI_EMULATED
// An address in shared memory, a number of bytes.
typedef unsigned kumi_shared;
KUMI_INLINE kumi_shared kumi_shared_address(const void* p) { return (kumi_shared)__cvta_generic_to_shared(p); }
// c += a b.
KUMI_INLINE void kumi_tensor_product(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four matrices of 8 x 8 bf16 from shared memory, of which lane 8 i + r gives the address of row r of matrix i:
// matrix[i] is elements 2t and 2t + 1 of row g.
KUMI_INLINE void kumi_load_matrices(unsigned (&matrix)[4], kumi_shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(row)
               : "memory");
}
// Their transposes: matrix[i] is elements g of rows 2t and 2t + 1.
KUMI_INLINE void kumi_load_transposed_matrices(unsigned (&matrix)[4], kumi_shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(row)
               : "memory");
}
// Two numbers at a multiple of 8 bytes.
KUMI_INLINE void kumi_load_pair(float (&pair)[2], kumi_shared from) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair[0]), "=f"(pair[1]) : "r"(from) : "memory");
}

// ---- Copies of 4 or 16 bytes from global to shared memory that go on while the thread does. Those of a thread up to a
// kumi_commit_copies() are a group; after kumi_wait_for_copies<n>() all but the last n groups are done. Other
// threads see them after a barrier. From compute capability 8.0 on.

// Zeros where there is nothing: then `from` is an address that could be read, but is not.
template <int kBytes>
KUMI_INLINE void kumi_copy(kumi_shared to, const void* from, bool is_there) {
  if constexpr (kBytes == 16)  // past the first cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(is_there ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "n"(kBytes), "r"(is_there ? kBytes : 0)
                 : "memory");
}
KUMI_INLINE void kumi_commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
KUMI_INLINE void kumi_wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}
#endif

// ---- Codes of 4 bits, two a byte, the earlier in the lower half (codegen/kernel_ir.h).

KUMI_INLINE float kumi_load(const float* x) { return *x; }
KUMI_INLINE float kumi_load(const kumi_bf16* x) { return kumi_from_bf16(*x); }
KUMI_INLINE void kumi_store(float* y, float value) { *y = value; }
KUMI_INLINE void kumi_store(kumi_bf16* y, float value) { *y = kumi_to_bf16(value); }
KUMI_INLINE int kumi_search_1(float value, const float* boundaries) {
  int code = 0;
#pragma unroll
  for (int step = 8; step > 0; step /= 2) code += value > boundaries[code + step - 1] ? step : 0;
  return code;
}
// By the threads of a team, of which this one is `lane` of `lanes`.
template <typename T>
KUMI_INLINE void kumi_search(unsigned char* codes, const T* x, long count, float divisor, const float* boundaries,
                             int lane, int lanes) {
  for (long i = lane; 2 * i < count; i += lanes) {
    int low = kumi_search_1(kumi_load(x + 2 * i) / divisor, boundaries);
    int high = kumi_search_1(2 * i + 1 < count ? kumi_load(x + 2 * i + 1) / divisor : 0.0f, boundaries);
    codes[i] = (unsigned char)(low | high << 4);
  }
}
template <typename T>
KUMI_INLINE void kumi_look_up(T* y, const unsigned char* codes, long count, float scale, const float* table, int lane,
                              int lanes) {
  for (long i = lane; 2 * i < count; i += lanes) {
    int both = codes[i];
    kumi_store(y + 2 * i, table[both & 15] * scale);
    if (2 * i + 1 < count) kumi_store(y + 2 * i + 1, table[both >> 4] * scale);
  }
}
)prelude";

}  // namespace kumi
