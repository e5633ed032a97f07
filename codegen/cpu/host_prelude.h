// The text in front of every kernel of the host dialect: the functions that generated code calls.
//
// Everything is inlined, straight-line arithmetic (selects instead of branches), so that a loop
// around it becomes vector code. log, sin, cos and pow stay calls, which -fveclib=libmvec turns into
// glibc's vector ones. exp, and what is made of it, is written out, because libmvec leaves the vector
// path as soon as one lane holds -infinity, and masked softmax is full of those: 3.8 ns an element
// against 0.43 with half the elements masked, 0.55 against 0.43 with none (AVX2, Zen 3).
// Relative errors in f32: exp 8.3e-8, sigmoid 1.9e-7, tanh 1.4e-7 (measured), libmvec up to 4 ulp.
#pragma once

namespace kumi {

inline constexpr char kHostPrelude[] = R"prelude(
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;

extern "C" {
float logf(float);
float sinf(float);
float cosf(float);
float powf(float, float);
double exp(double);
double log(double);
double sin(double);
double cos(double);
double tanh(double);
double pow(double, double);
}

#define KUMI_INLINE [[clang::always_inline]] static inline

#define KUMI_INFINITY __builtin_inff()
#define KUMI_INFINITY_F64 __builtin_inf()
#define KUMI_NAN __builtin_nanf("")
#define KUMI_NAN_F64 __builtin_nan("")
typedef _Float16 kumi_f16;

// Reductions of a maximum or minimum: NaN wins, the order does not matter. These are LLVM's own
// operations by name, because no C++ expression for them becomes a vector reduction in Clang 19
// unless NaNs are ruled out.
float kumi_max_reduce(float, float) __asm__("llvm.maximum.f32");
float kumi_min_reduce(float, float) __asm__("llvm.minimum.f32");
double kumi_max_reduce(double, double) __asm__("llvm.maximum.f64");
double kumi_min_reduce(double, double) __asm__("llvm.minimum.f64");
KUMI_INLINE int32_t kumi_max_reduce(int32_t a, int32_t b) { return a > b ? a : b; }
KUMI_INLINE int32_t kumi_min_reduce(int32_t a, int32_t b) { return a < b ? a : b; }
KUMI_INLINE int64_t kumi_max_reduce(int64_t a, int64_t b) { return a > b ? a : b; }
KUMI_INLINE int64_t kumi_min_reduce(int64_t a, int64_t b) { return a < b ? a : b; }

// Element by element; NaN wins here, too.
KUMI_INLINE float kumi_max(float a, float b) { return a > b || a != a ? a : b; }
KUMI_INLINE float kumi_min(float a, float b) { return a < b || a != a ? a : b; }
KUMI_INLINE float kumi_abs(float x) { return __builtin_fabsf(x); }
KUMI_INLINE float kumi_floor(float x) { return __builtin_floorf(x); }
KUMI_INLINE float kumi_sqrt(float x) { return __builtin_sqrtf(x); }
KUMI_INLINE float kumi_rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

// 2^n e^r with x = n ln 2 + r, |r| <= ln 2 / 2; Cephes' polynomial for e^r. Results below 1.8e-38,
// next to the smallest normal number, are 0: arithmetic on denormals is slow, and nothing needs it.
KUMI_INLINE float kumi_exp(float x) {
  const float lowest = -86.9f;
  float c = x < lowest ? lowest : x;  // NaN passes both
  c = c > 89.0f ? 89.0f : c;
  float shifted = c * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds, leaving n in the low bits
  float n = shifted - 12582912.0f;
  float r = c - n * 0.693359375f;  // ln 2 in two parts; the first times n is exact
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  // 2p times 2^(n-1), as 2^128 is no float though 2^128 p may be one. The shift keeps the low bits only.
  float scale = __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, shifted) + 126u) << 23);
  return x < lowest ? 0.0f : (p + p) * scale;
}

// 2^x for x <= 0, by the same polynomial in x ln 2; no less than 2^-126, the smallest normal number.
KUMI_INLINE float kumi_exp2(float x) {
  float c = x < -126.0f ? -126.0f : x;
  float shifted = c + 12582912.0f;  // 1.5 * 2^23
  float r = (c - (shifted - 12582912.0f)) * 0.693147180559945309f;
  float p = 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int exponent = __builtin_bit_cast(int, shifted) << 23;  // of 2^n: added to that of p, which is near 1
  return __builtin_bit_cast(float, __builtin_bit_cast(int, p) + exponent);
}

KUMI_INLINE float kumi_log(float x) { return logf(x); }
KUMI_INLINE float kumi_sin(float x) { return sinf(x); }
KUMI_INLINE float kumi_cos(float x) { return cosf(x); }
KUMI_INLINE float kumi_pow(float x, float y) { return powf(x, y); }

// The exponential's argument is never positive, so it cannot overflow.
KUMI_INLINE float kumi_sigmoid(float x) {
  float e = kumi_exp(-__builtin_fabsf(x));
  float d = 1.0f / (1.0f + e);
  return x >= 0.0f ? d : e * d;
}

// By exponential where that is exact enough, by Cephes' polynomial around 0.
KUMI_INLINE float kumi_tanh(float x) {
  float a = __builtin_fabsf(x);
  float far = 1.0f - 2.0f / (kumi_exp(2.0f * a) + 1.0f);
  float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  float near = p * z * x + x;
  return a < 0.625f ? near : __builtin_copysignf(far, x);
}

KUMI_INLINE double kumi_abs_f64(double x) { return __builtin_fabs(x); }
KUMI_INLINE double kumi_floor_f64(double x) { return __builtin_floor(x); }
KUMI_INLINE double kumi_sqrt_f64(double x) { return __builtin_sqrt(x); }
KUMI_INLINE double kumi_rsqrt_f64(double x) { return 1.0 / __builtin_sqrt(x); }
KUMI_INLINE double kumi_exp_f64(double x) { return exp(x); }
KUMI_INLINE double kumi_log_f64(double x) { return log(x); }
KUMI_INLINE double kumi_sin_f64(double x) { return sin(x); }
KUMI_INLINE double kumi_cos_f64(double x) { return cos(x); }
KUMI_INLINE double kumi_tanh_f64(double x) { return tanh(x); }
KUMI_INLINE double kumi_pow_f64(double x, double y) { return pow(x, y); }
KUMI_INLINE double kumi_sigmoid_f64(double x) {
  double e = exp(-__builtin_fabs(x));
  double d = 1.0 / (1.0 + e);
  return x >= 0.0 ? d : e * d;
}

// bf16 is the upper half of an f32; storing rounds to the nearest, ties to even, and keeps NaN a NaN. Where
// the processor has an instruction for it, that takes what is smaller than a normal number as 0.
struct kumi_bf16 {
  uint16_t bits;
};
KUMI_INLINE float kumi_from_bf16(kumi_bf16 x) { return __builtin_bit_cast(float, (uint32_t)x.bits << 16); }
#if defined(__AVX512BF16__)
KUMI_INLINE kumi_bf16 kumi_to_bf16(float x) { return {__builtin_bit_cast(uint16_t, (__bf16)x)}; }
#else
KUMI_INLINE kumi_bf16 kumi_to_bf16(float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return {(uint16_t)(x != x ? bits >> 16 | 0x40u : rounded)};
}
#endif
// Two bf16 in 32 bits, the first in the lower half.
KUMI_INLINE int kumi_bf16_pair(float first, float second) {
  uint32_t low = kumi_to_bf16(first).bits, high = kumi_to_bf16(second).bits;
  return (int)(low | high << 16);
}
KUMI_INLINE int kumi_exact_bf16_pair(float first, float second) {
  return (int)(__builtin_bit_cast(uint32_t, first) >> 16 | (__builtin_bit_cast(uint32_t, second) & 0xffff0000u));
}
KUMI_INLINE float kumi_round_to_bf16(float x) { return kumi_from_bf16(kumi_to_bf16(x)); }
KUMI_INLINE float kumi_round_to_f16(float x) { return (float)(_Float16)x; }

// Code lookups and searches (codegen/kernel_ir.h): 32 values at a time, the table in one register.
KUMI_INLINE float kumi_load(const float* x) { return *x; }
KUMI_INLINE float kumi_load(const kumi_bf16* x) { return kumi_from_bf16(*x); }
KUMI_INLINE void kumi_store(float* y, float value) { *y = value; }
KUMI_INLINE void kumi_store(kumi_bf16* y, float value) { *y = kumi_to_bf16(value); }
#if defined(__AVX512F__)
typedef float kumi_floats16 __attribute__((vector_size(64), aligned(4)));
typedef int kumi_ints16 __attribute__((vector_size(64), aligned(4)));
typedef uint8_t kumi_bytes16 __attribute__((vector_size(16), aligned(1)));
KUMI_INLINE void kumi_store_both(float* y, kumi_floats16 low, kumi_floats16 high) {
  *(kumi_floats16*)y = __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *(kumi_floats16*)(y + 16) =
      __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
KUMI_INLINE void kumi_store_both(kumi_bf16* y, kumi_floats16 low, kumi_floats16 high) {
  kumi_ints16 pairs;
  for (int i = 0; i < 16; ++i) pairs[i] = kumi_bf16_pair(low[i], high[i]);
  *(kumi_ints16*)y = pairs;
}
template <typename T>
KUMI_INLINE long kumi_look_up_vectors(T* y, const uint8_t* codes, long bytes, float scale, const float* table) {
  const kumi_floats16 values = *(const kumi_floats16*)table * scale;
  long i = 0;
  for (; i + 16 <= bytes; i += 16) {
    kumi_ints16 both = __builtin_convertvector(*(const kumi_bytes16*)(codes + i), kumi_ints16);
    kumi_store_both(y + 2 * i, __builtin_ia32_permvarsf512(values, both & 15),
                    __builtin_ia32_permvarsf512(values, both >> 4));
  }
  return i;
}
KUMI_INLINE kumi_ints16 kumi_search_16(kumi_floats16 value, kumi_floats16 boundaries) {
  kumi_ints16 code = {};
  for (int step = 8; step > 0; step /= 2)
    code += (value > __builtin_ia32_permvarsf512(boundaries, code + (step - 1))) & step;
  return code;
}
template <typename T>
KUMI_INLINE kumi_floats16 kumi_load_16(const T* x) {
  kumi_floats16 values;
  for (int i = 0; i < 16; ++i) values[i] = kumi_load(x + i);
  return values;
}
template <typename T>
KUMI_INLINE long kumi_search_vectors(uint8_t* codes, const T* x, long bytes, float divisor, const float* boundaries) {
  const kumi_floats16 all = *(const kumi_floats16*)boundaries;
  long i = 0;
  for (; i + 16 <= bytes; i += 16) {
    kumi_ints16 a = kumi_search_16(kumi_load_16(x + 2 * i) / divisor, all);
    kumi_ints16 b = kumi_search_16(kumi_load_16(x + 2 * i + 16) / divisor, all);
    kumi_ints16 low = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    kumi_ints16 high = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    *(kumi_bytes16*)(codes + i) = __builtin_convertvector(low | high << 4, kumi_bytes16);
  }
  return i;
}
#else
template <typename T>
KUMI_INLINE long kumi_search_vectors(uint8_t*, const T*, long, float, const float*) { return 0; }
template <typename T>
KUMI_INLINE long kumi_look_up_vectors(T*, const uint8_t*, long, float, const float*) { return 0; }
#endif
KUMI_INLINE int kumi_search_1(float value, const float* boundaries) {
  int code = 0;
  for (int step = 8; step > 0; step /= 2) code += value > boundaries[code + step - 1] ? step : 0;
  return code;
}
template <typename T>
KUMI_INLINE void kumi_search(uint8_t* codes, const T* x, long count, float divisor, const float* boundaries) {
  for (long i = kumi_search_vectors(codes, x, count / 2, divisor, boundaries); 2 * i < count; ++i) {
    int low = kumi_search_1(kumi_load(x + 2 * i) / divisor, boundaries);
    int high = kumi_search_1(2 * i + 1 < count ? kumi_load(x + 2 * i + 1) / divisor : 0.0f, boundaries);
    codes[i] = (uint8_t)(low | high << 4);
  }
}
template <typename T>
KUMI_INLINE void kumi_look_up(T* y, const uint8_t* codes, long count, float scale, const float* table) {
  for (long i = 2 * kumi_look_up_vectors(y, codes, count / 2, scale, table); i < count; ++i)
    kumi_store(y + i, table[codes[i / 2] >> i % 2 * 4 & 15] * scale);
}

// Tile products (codegen/kernel_ir.h). A block of rows times two vectors of columns stays in registers
// while the depth is walked through: enough independent sums to hide the latency of a multiply-add.
#if defined(__AVX512F__)
#define KUMI_LANES 16
#define KUMI_TILE_ROWS 8
#elif defined(__AVX__)
#define KUMI_LANES 8
#define KUMI_TILE_ROWS 4
#else
#define KUMI_LANES 4
#define KUMI_TILE_ROWS 4
#endif
typedef float kumi_floats __attribute__((vector_size(4 * KUMI_LANES), aligned(4)));
typedef int kumi_ints __attribute__((vector_size(4 * KUMI_LANES), aligned(4)));

KUMI_INLINE kumi_floats kumi_multiply_add(kumi_floats sum, float a, kumi_floats b) { return sum + a * b; }
#if defined(__AVX512BF16__)
typedef __bf16 kumi_bf16s __attribute__((vector_size(64)));
KUMI_INLINE kumi_floats kumi_multiply_add(kumi_floats sum, int a, kumi_ints b) {
  return __builtin_ia32_dpbf16ps_512(sum, (kumi_bf16s)(a + kumi_ints{}), (kumi_bf16s)b);
}
#else
KUMI_INLINE kumi_floats kumi_multiply_add(kumi_floats sum, int a, kumi_ints b) {
  float low = __builtin_bit_cast(float, a << 16), high = __builtin_bit_cast(float, a & (int)0xffff0000);
  return sum + low * (kumi_floats)(b << 16) + high * (kumi_floats)(b & (int)0xffff0000);
}
#endif

template <typename T>
struct kumi_vector_of;
template <>
struct kumi_vector_of<float> {
  typedef kumi_floats type;
};
template <>
struct kumi_vector_of<int> {
  typedef kumi_ints type;
};

template <int kVectors, bool kAccumulate, typename T>
KUMI_INLINE void kumi_tile(float* c, long c_row, const T* a, long a_row, long a_column, const T* b, long b_row,
                           long depth) {
  typedef typename kumi_vector_of<T>::type vector;
  kumi_floats sums[KUMI_TILE_ROWS][kVectors];
  for (int i = 0; i < KUMI_TILE_ROWS; ++i)
    for (int v = 0; v < kVectors; ++v)
      sums[i][v] = kAccumulate ? *(const kumi_floats*)(c + i * c_row + v * KUMI_LANES) : kumi_floats{};
  for (long d = 0; d < depth; ++d) {
    vector columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = *(const vector*)(b + d * b_row + v * KUMI_LANES);
    for (int i = 0; i < KUMI_TILE_ROWS; ++i) {
      T factor = a[i * a_row + d * a_column];
      for (int v = 0; v < kVectors; ++v) sums[i][v] = kumi_multiply_add(sums[i][v], factor, columns[v]);
    }
  }
  for (int i = 0; i < KUMI_TILE_ROWS; ++i)
    for (int v = 0; v < kVectors; ++v) *(kumi_floats*)(c + i * c_row + v * KUMI_LANES) = sums[i][v];
}

template <int kColumns, bool kAccumulate, typename T>
[[clang::noinline]] static void kumi_tile_product(float* c, long c_row, const T* a, long a_row, long a_column,
                                                  const T* b, long b_row, long rows, long depth) {
  constexpr int kTwo = kColumns / (2 * KUMI_LANES) * 2 * KUMI_LANES;
  for (long i = 0; i < rows; i += KUMI_TILE_ROWS) {
    for (int j = 0; j < kTwo; j += 2 * KUMI_LANES)
      kumi_tile<2, kAccumulate>(c + i * c_row + j, c_row, a + i * a_row, a_row, a_column, b + j, b_row, depth);
    if constexpr (kTwo < kColumns)
      kumi_tile<1, kAccumulate>(c + i * c_row + kTwo, c_row, a + i * a_row, a_row, a_column, b + kTwo, b_row,
                                depth);
  }
}
)prelude";

}  // namespace kumi
