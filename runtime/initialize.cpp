#include "runtime/initialize.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numbers>
#include <thread>

#include "graph/tensor_pieces.h"
#include "runtime/executor.h"

namespace kumi {
namespace {

constexpr int64_t kElementsPerThread = 1 << 20;  // below, a thread costs more than it gives
constexpr int64_t kElementsAtATime = 1 << 23;    // of initialize_state: f32 twice, 64 MiB

// Two normal numbers (Box-Muller) from one Philox block: elements 2 * pair and 2 * pair + 1.
void normal_pair(uint64_t key, uint64_t pair, double* first, double* second) {
  const std::array<uint32_t, 4> bits = philox(key, pair);
  const double scale = 0x1p-53;
  const uint64_t a = (static_cast<uint64_t>(bits[0]) << 32 | bits[1]) >> 11;
  const uint64_t b = (static_cast<uint64_t>(bits[2]) << 32 | bits[3]) >> 11;
  const double radius = std::sqrt(-2 * std::log(static_cast<double>(a + 1) * scale));
  const double angle = 2 * std::numbers::pi * static_cast<double>(b) * scale;
  *first = radius * std::cos(angle);
  *second = radius * std::sin(angle);
}

// Elements [begin, end) to `values`.
void fill_range(const Initializer& initializer, uint64_t key, int64_t begin, int64_t end, float* values) {
  switch (initializer.kind) {
    case Initializer::kZeros:
      return;  // as they are
    case Initializer::kOnes:
    case Initializer::kConstant: {
      const double value = initializer.kind == Initializer::kOnes ? 1 : initializer.parameter;
      std::fill(values, values + (end - begin), static_cast<float>(value));
      return;
    }
    case Initializer::kNormal:
      for (int64_t i = begin / 2 * 2; i < end; i += 2) {
        double first = 0, second = 0;
        normal_pair(key, static_cast<uint64_t>(i / 2), &first, &second);
        if (i >= begin) values[i - begin] = static_cast<float>(initializer.parameter * first);
        if (i + 1 < end) values[i + 1 - begin] = static_cast<float>(initializer.parameter * second);
      }
      return;
    case Initializer::kUniform:
      for (int64_t i = begin; i < end; ++i)
        values[i - begin] =
            static_cast<float>(initializer.parameter * (2 * uniform01(key, static_cast<uint64_t>(i)) - 1));
      return;
  }
}

std::vector<float> floats(const Initializer& initializer, uint64_t key, int64_t begin, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  int64_t parts = std::clamp<int64_t>(count / kElementsPerThread, 1, std::thread::hardware_concurrency() + 1);
  int64_t share = (count / parts + 2) / 2 * 2;  // even: no pair is computed twice
  std::vector<std::jthread> threads;
  for (int64_t from = share; from < count; from += share)
    threads.emplace_back(fill_range, std::cref(initializer), key, begin + from,
                         begin + std::min(from + share, count), values.data() + from);
  fill_range(initializer, key, begin, begin + std::min(share, count), values.data());
  return values;
}

uint16_t to_bf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest even
}

// What a tensor begins as, for messages.
struct Wish {
  const std::string& tensor;
  const Initializer& initializer;
  DType dtype;
  const SourceLocation& location;

  Error refused() const {
    Error error(concat("the state ", quoted(tensor), " has elements of type ", to_string(dtype),
                       " and cannot begin as ", to_string(initializer)));
    error.at(location);
    return error;
  }
};

// Integers begin as whole numbers that the element type and f32 both hold exactly, and never at random.
void check_fits(const Wish& wish) {
  if (wish.dtype == DType::F16) throw wish.refused().expected("elements of type f32 or bf16");
  if (is_floating(wish.dtype)) return;
  const Initializer::Kind kind = wish.initializer.kind;
  if (kind == Initializer::kNormal || kind == Initializer::kUniform) throw wish.refused();
  if (kind != Initializer::kConstant) return;
  const bool is_byte = wish.dtype == DType::U8 || wish.dtype == DType::BOOL;
  const double lowest = is_byte ? 0 : -0x1p24, highest = is_byte ? 255 : 0x1p24;
  const double value = wish.initializer.parameter;
  if (value != std::floor(value) || value < lowest || value > highest)
    throw wish.refused().expected(concat("a whole number from ", lowest, " to ", highest));
}

template <typename T>
void store(std::vector<std::byte>* bytes, size_t i, T value) {
  std::memcpy(bytes->data() + i * sizeof value, &value, sizeof value);
}

}  // namespace

std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  constexpr int kRounds = 10;
  std::array<uint32_t, 4> x = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  auto key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultiplier0 * x[0], product1 = kMultiplier1 * x[2];
    x = {static_cast<uint32_t>(product1 >> 32) ^ x[1] ^ key0, static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ x[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return x;
}

double uniform01(uint64_t key, uint64_t counter) {
  const std::array<uint32_t, 4> bits = philox(key, counter);
  return static_cast<double>((static_cast<uint64_t>(bits[0]) << 32 | bits[1]) >> 11) * 0x1p-53;
}

uint64_t random_key(uint64_t seed, const std::string& name) {
  return XXH3_64bits_withSeed(name.data(), name.size(), seed);
}

std::vector<std::byte> initial_values(const std::string& tensor, const Initializer& initializer, DType dtype,
                                      uint64_t seed, int64_t begin, int64_t count,
                                      const SourceLocation& location) {
  std::vector<std::byte> bytes(static_cast<size_t>(count * size_of(dtype)));
  if (initializer.kind == Initializer::kZeros) return bytes;
  check_fits({tensor, initializer, dtype, location});
  const std::vector<float> values = floats(initializer, random_key(seed, tensor), begin, count);
  for (size_t i = 0; i < values.size(); ++i) {
    switch (dtype) {
      case DType::F32:
        store(&bytes, i, values[i]);
        break;
      case DType::F64:
        store(&bytes, i, static_cast<double>(values[i]));
        break;
      case DType::BF16:
        store(&bytes, i, to_bf16(values[i]));
        break;
      case DType::I32:
        store(&bytes, i, static_cast<int32_t>(values[i]));
        break;
      case DType::I64:
        store(&bytes, i, static_cast<int64_t>(values[i]));
        break;
      case DType::U8:
      case DType::BOOL:
        store(&bytes, i, static_cast<uint8_t>(values[i]));
        break;
      case DType::F16:  // check_fits has refused it
        break;
    }
  }
  return bytes;
}

std::vector<std::byte> initial_value(const State& state, uint64_t seed) {
  return initial_values(state.name, state.initializer, state.type.dtype, seed, 0,
                        element_count(state.type.shape).number(), state.location);
}

void initialize_state(const State& state, uint64_t seed, Executor& executor, int64_t rank) {
  if (state.kind == State::kReplica) return;
  const DType dtype = state.type.dtype;
  for (const TensorPiece& piece : tensor_pieces(state, executor.plan().module.mesh, rank)) {
    if (piece.initializer.kind == Initializer::kZeros) continue;
    for (int64_t begin = 0; begin < piece.count; begin += kElementsAtATime) {
      const int64_t count = std::min(kElementsAtATime, piece.count - begin);
      const std::vector<std::byte> values = initial_values(piece.tensor, piece.initializer, dtype, seed,
                                                           piece.tensor_begin + begin, count, state.location);
      executor.write_state(state.name, values.data(), (piece.state_begin + begin) * size_of(dtype),
                           count * size_of(dtype));
    }
  }
}

}  // namespace kumi
