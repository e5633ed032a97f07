// What CUDA C++ has built in, for Clang on the host: the text in front of kCudaPrelude when kernels are
// emulated.
//
// A kernel becomes a function that one thread of the emulated grid runs; the device `cuda_emu`
// (runtime/cuda_emu/thread_block.h) calls it once a thread and supplies `kumi_emulated`, where that thread
// is, and the two functions in which threads wait for each other. Both are convergent, as barriers are to
// NVRTC: the compiler neither copies calls of them into branches nor merges those of two. __CUDA_ARCH__ is
// not defined.
//
// Lines of this text and of kCudaPrelude count from kPreludeLine, so that messages of a barrier or a shuffle
// can tell them from those of the kernel.
#pragma once

namespace kumi {

inline constexpr int kPreludeLine = 1000000;

inline constexpr char kEmulationPrelude[] = R"prelude(#line 1000000
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))

// One block at a time runs, so its shared memory is static. All of it is in one section, which the device fills
// with garbage before each block. The compiler must not think that it sees all uses.
#define __shared__ static __attribute__((section("kumi_shared"), used))
static __attribute__((section("kumi_shared"), used)) int kumi_shared_first;
#define KUMI_DYNAMIC_SHARED(name, bytes)            \
  __shared__ __align__(16) char name##_memory[bytes]; \
  const kumi_shared name = kumi_shared_address(name##_memory)
extern "C" {
extern char __start_kumi_shared[], __stop_kumi_shared[];
struct kumi_shared_range {
  char *begin, *end;
};
kumi_shared_range kumi_shared_memory() { return {__start_kumi_shared, __stop_kumi_shared}; }
}

#define KUMI_EMULATED
#define KUMI_UNROLL

#define KUMI_KERNEL(symbol, count, threads)                                                                         \
  extern "C" {                                                                                                      \
  extern const int symbol##_launch_bound;                                                                           \
  const int symbol##_launch_bound = threads;                                                                        \
  }                                                                                                                 \
  extern "C" void symbol(const kumi_buffers<count>& buffers)

// ---- Vector types. Assignments are written out, as Clang checks the alignment of members, not of whole structs.

struct uint3 {
  unsigned x, y, z;
};
typedef uint3 dim3;
#define KUMI_EMULATED_VECTOR_2(T, name)                                                                             \
  struct alignas(2 * sizeof(T)) name {                                                                              \
    T x, y;                                                                                                         \
    __forceinline__ name& operator=(const name& other) {                                                            \
      x = other.x, y = other.y;                                                                                     \
      return *this;                                                                                                 \
    }                                                                                                               \
  };                                                                                                                \
  __forceinline__ name make_##name(T x, T y) { return {x, y}; }
#define KUMI_EMULATED_VECTOR_4(T, name)                                                                             \
  struct alignas(4 * sizeof(T)) name {                                                                              \
    T x, y, z, w;                                                                                                   \
    __forceinline__ name& operator=(const name& other) {                                                            \
      x = other.x, y = other.y, z = other.z, w = other.w;                                                           \
      return *this;                                                                                                 \
    }                                                                                                               \
  };                                                                                                                \
  __forceinline__ name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
KUMI_EMULATED_VECTOR_2(int, int2)
KUMI_EMULATED_VECTOR_2(unsigned, uint2)
KUMI_EMULATED_VECTOR_2(float, float2)
KUMI_EMULATED_VECTOR_2(double, double2)
KUMI_EMULATED_VECTOR_4(int, int4)
KUMI_EMULATED_VECTOR_4(unsigned, uint4)
KUMI_EMULATED_VECTOR_4(float, float4)

// ---- Where a thread is, and where it waits.

extern "C" {
struct kumi_emulated_thread {
  uint3 thread, block, block_size, grid_size;
  void* scheduler;
};
extern kumi_emulated_thread kumi_emulated;
__attribute__((convergent)) void kumi_emulated_barrier(void* scheduler, int line);
// `operation` as in runtime/cuda_emu/thread_block.h; all lanes of the mask together. The result is the value of
// the lane `source`, or the lanes whose value is not 0.
__attribute__((convergent)) unsigned long kumi_emulated_exchange(void* scheduler, int operation, unsigned mask,
                                                                 unsigned long value, int source, int line);
}
#define threadIdx kumi_emulated.thread
#define blockIdx kumi_emulated.block
#define blockDim kumi_emulated.block_size
#define gridDim kumi_emulated.grid_size
#define warpSize 32

__forceinline__ void __syncthreads(int line = __builtin_LINE()) {
  kumi_emulated_barrier(kumi_emulated.scheduler, line);
}
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  kumi_emulated_exchange(kumi_emulated.scheduler, 0, mask, 0, threadIdx.x % 32, line);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return (unsigned)kumi_emulated_exchange(kumi_emulated.scheduler, 1, mask, predicate != 0, threadIdx.x % 32, line);
}
__forceinline__ int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) == mask;
}
template <typename T>
__forceinline__ T kumi_emulated_shuffle(int operation, unsigned mask, T value, int source, int line) {
  unsigned long bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = kumi_emulated_exchange(kumi_emulated.scheduler, operation, mask, bits, source, line);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
// Lanes fall into segments of `width`, a power of 2. Where the lane named is in none or in a later one, a lane
// gets its own value.
#define KUMI_EMULATED_SHUFFLES(T)                                                                                   \
  __forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32,                                 \
                                int line = __builtin_LINE()) {                                                      \
    const int first = threadIdx.x % 32 & -width;                                                                    \
    return kumi_emulated_shuffle(2, mask, value, first | (source & (width - 1)), line);                             \
  }                                                                                                                 \
  __forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,                          \
                                   int line = __builtin_LINE()) {                                                   \
    const int lane = threadIdx.x % 32, first = lane & -width;                                                       \
    return kumi_emulated_shuffle(3, mask, value, lane - (int)delta < first ? lane : lane - (int)delta, line);       \
  }                                                                                                                 \
  __forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,                        \
                                     int line = __builtin_LINE()) {                                                 \
    const int lane = threadIdx.x % 32, end = (lane & -width) + width;                                               \
    return kumi_emulated_shuffle(4, mask, value, lane + (int)delta >= end ? lane : lane + (int)delta, line);        \
  }                                                                                                                 \
  __forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,                          \
                                    int line = __builtin_LINE()) {                                                  \
    const int lane = threadIdx.x % 32, end = (lane & -width) + width, source = lane ^ lane_mask;                    \
    return kumi_emulated_shuffle(5, mask, value, source >= end ? lane : source, line);                              \
  }
KUMI_EMULATED_SHUFFLES(int)
KUMI_EMULATED_SHUFFLES(unsigned)
KUMI_EMULATED_SHUFFLES(long)
KUMI_EMULATED_SHUFFLES(unsigned long)
KUMI_EMULATED_SHUFFLES(long long)
KUMI_EMULATED_SHUFFLES(unsigned long long)
KUMI_EMULATED_SHUFFLES(float)
KUMI_EMULATED_SHUFFLES(double)

// Threads run one at a time, and change only where they wait.
__forceinline__ void __threadfence() {}
__forceinline__ void __threadfence_block() {}

// ---- Functions of an element.

extern "C" {
float expf(float);
float exp2f(float);
float logf(float);
float log2f(float);
float sinf(float);
float cosf(float);
float tanhf(float);
float erff(float);
float powf(float, float);
float sqrtf(float);
float fabsf(float);
float floorf(float);
float ceilf(float);
float truncf(float);
float rintf(float);
float copysignf(float, float);
float fmaf(float, float, float);
float fmaxf(float, float);
float fminf(float, float);
double exp(double);
double exp2(double);
double log(double);
double log2(double);
double sin(double);
double cos(double);
double tanh(double);
double erf(double);
double pow(double, double);
double sqrt(double);
double fabs(double);
double floor(double);
double ceil(double);
double trunc(double);
double rint(double);
double copysign(double, double);
double fma(double, double, double);
double fmax(double, double);
double fmin(double, double);
}
__forceinline__ float rsqrtf(float x) { return 1.0f / sqrtf(x); }
__forceinline__ double rsqrt(double x) { return 1.0 / sqrt(x); }
__forceinline__ float __expf(float x) { return expf(x); }
__forceinline__ float __logf(float x) { return logf(x); }
__forceinline__ float __fdividef(float x, float y) { return x / y; }
__forceinline__ int min(int a, int b) { return a < b ? a : b; }
__forceinline__ int max(int a, int b) { return a > b ? a : b; }
__forceinline__ long min(long a, long b) { return a < b ? a : b; }
__forceinline__ long max(long a, long b) { return a > b ? a : b; }
__forceinline__ unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
__forceinline__ float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
__forceinline__ double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
__forceinline__ int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
__forceinline__ float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
template <typename T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}

// ---- Tensor cores (cuda_prelude.h). Lanes lay what they hold where all find it, in one of two places by turns:
// who comes to the next exchange has read what came with the last. For blocks of up to 256 threads.

typedef unsigned long kumi_shared;
__forceinline__ kumi_shared kumi_shared_address(const void* p) { return (kumi_shared)p; }
struct kumi_emulated_warp {
  unsigned long words[2][32][3];
  unsigned turn[32];
};
static kumi_emulated_warp kumi_warps[8] __attribute__((section("kumi_shared")));
typedef const unsigned long (*kumi_words_of_lanes)[3];
static __noinline__ kumi_words_of_lanes kumi_gather(unsigned long first, unsigned long second, unsigned long third) {
  kumi_emulated_warp& warp = kumi_warps[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  unsigned long (*const words)[3] = warp.words[warp.turn[lane]++ % 2];
  words[lane][0] = first, words[lane][1] = second, words[lane][2] = third;
  __syncwarp();
  return words;
}
static __noinline__ void kumi_tensor_product(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const int lane = threadIdx.x % 32;
  const kumi_words_of_lanes words =
      kumi_gather(a[0] | (unsigned long)a[1] << 32, a[2] | (unsigned long)a[3] << 32, b0 | (unsigned long)b1 << 32);
  for (int i = 0; i < 4; ++i)
    for (int part = 0; part < 4; ++part)  // of the depth, as the 4 lanes of a row or column hold it
      for (int half = 0; half < 2; ++half) {
        const unsigned x = (unsigned)(words[lane / 4 * 4 + part][half] >> i / 2 * 32);
        const unsigned y = (unsigned)(words[lane % 4 * 8 + i % 2 * 4 + part][2] >> half * 32);
        c[i] += __uint_as_float(x << 16) * __uint_as_float(y << 16);
        c[i] += __uint_as_float(x & 0xffff0000u) * __uint_as_float(y & 0xffff0000u);
      }
}
static __noinline__ void kumi_load_matrices(unsigned (&matrix)[4], kumi_shared row) {
  const int lane = threadIdx.x % 32;
  const kumi_words_of_lanes rows = kumi_gather(row, 0, 0);
  for (int i = 0; i < 4; ++i) {
    const uint4* const from = (const uint4*)rows[8 * i + lane / 4][0];
    const unsigned words[4] = {from->x, from->y, from->z, from->w};
    matrix[i] = words[lane % 4];
  }
}
static __noinline__ void kumi_load_transposed_matrices(unsigned (&matrix)[4], kumi_shared row) {
  const int lane = threadIdx.x % 32;
  const kumi_words_of_lanes rows = kumi_gather(row, 0, 0);
  for (int i = 0; i < 4; ++i) {
    unsigned elements[2];
    for (int j = 0; j < 2; ++j) {
      const uint4* const from = (const uint4*)rows[8 * i + lane % 4 * 2 + j][0];
      const unsigned words[4] = {from->x, from->y, from->z, from->w};
      elements[j] = words[lane / 8] >> lane / 4 % 2 * 16 & 0xffffu;
    }
    matrix[i] = elements[1] << 16 | elements[0];
  }
}
static inline void kumi_load_pair(float (&pair)[2], kumi_shared from) {
  const float2* const both = (const float2*)from;
  pair[0] = both->x, pair[1] = both->y;
}

// ---- Copies that go on while a thread does (cuda_prelude.h). Every other one is done at once, as early as a GPU may
// do it, and the rest when the thread waits for it: so that what is read too early, or written over too early, is
// wrong.

struct kumi_emulated_copy {
  kumi_shared to;
  const void* from;
  int bytes, group;
};
// In shared memory, so that each block begins anew; what is filled with ones counts from there downwards.
struct kumi_emulated_copies {
  kumi_emulated_copy waiting[32];
  int count, groups;
};
static kumi_emulated_copies kumi_copies[256] __attribute__((section("kumi_shared")));
// Of 4 or 16 bytes; zeros for -4 and -16.
static inline void kumi_do_copy(kumi_shared to, const void* from, int bytes) {
  if (bytes == 16 || bytes == -16)
    *(uint4*)to = bytes > 0 ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
  else
    *(unsigned*)to = bytes > 0 ? *(const unsigned*)from : 0;
}
template <int kBytes>
static inline void kumi_copy(kumi_shared to, const void* from, bool is_there) {
  kumi_emulated_copies& own = kumi_copies[threadIdx.x];
  const int count = ~own.count, bytes = is_there ? kBytes : -kBytes;
  if (to / kBytes % 2 == 0 || count == 32) return kumi_do_copy(to, from, bytes);
  own.waiting[count] = {to, from, bytes, ~own.groups};
  own.count = ~(count + 1);
}
static inline void kumi_commit_copies() { --kumi_copies[threadIdx.x].groups; }
template <int kGroups>
static inline void kumi_wait_for_copies() {
  kumi_emulated_copies& own = kumi_copies[threadIdx.x];
  const int count = ~own.count;
  int left = 0;
  for (int i = 0; i < count; ++i) {
    const kumi_emulated_copy copy = own.waiting[i];
    if (copy.group < ~own.groups - kGroups)
      kumi_do_copy(copy.to, copy.from, copy.bytes);
    else
      own.waiting[left++] = copy;
  }
  own.count = ~left;
}
)prelude";

}  // namespace kumi
