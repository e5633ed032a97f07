// First values: the generator's published answers, its independence of sizes and threads, and the
// shape of the distributions.
#include "runtime/initialize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "tests/support/sharded_states.h"

namespace kumi {
namespace {

using Words = std::array<uint32_t, 4>;

// Philox4x32-10 as the paper writes it, with the whole counter.
Words plain_philox(std::array<uint32_t, 2> key, Words counter) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53} * counter[0], right = uint64_t{0xCD9E8D57} * counter[2];
    const auto high = [](uint64_t product) { return static_cast<uint32_t>(product >> 32); };
    const auto low = [](uint64_t product) { return static_cast<uint32_t>(product); };
    counter = {high(right) ^ counter[1] ^ key[0], low(right), high(left) ^ counter[3] ^ key[1], low(left)};
    key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
  }
  return counter;
}

State state_of(DType dtype, int64_t count, Initializer initializer, const std::string& name = "w") {
  return {name, State::kWeight, Type{dtype, {Dim(count)}}, initializer, {"model.kumi", 3, 1}};
}

template <typename T = float>
std::vector<T> values_of(const State& state, uint64_t seed = 0) {
  const std::vector<std::byte> bytes = initial_value(state, seed);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<float> normals(int64_t count, uint64_t seed = 0, const std::string& name = "w") {
  return values_of(state_of(DType::F32, count, {Initializer::kNormal, 1}, name), seed);
}

// The largest distance between the sample's distribution function and the given one
// (Kolmogorov and Smirnov), times sqrt(n): above 2.2 for one sample in ten thousand.
template <typename Distribution>
double kolmogorov(std::vector<float> sample, Distribution distribution) {
  std::sort(sample.begin(), sample.end());
  const auto n = static_cast<double>(sample.size());
  double largest = 0;
  for (size_t i = 0; i < sample.size(); ++i) {
    const double expected = distribution(sample[i]);
    largest =
        std::max({largest, expected - static_cast<double>(i) / n, static_cast<double>(i + 1) / n - expected});
  }
  return largest * std::sqrt(n);
}

struct Moments {
  double mean = 0, variance = 0, skewness = 0, kurtosis = 0;
};

Moments moments(const std::vector<float>& sample) {
  const auto n = static_cast<double>(sample.size());
  Moments m;
  for (float x : sample) m.mean += x / n;
  double third = 0, fourth = 0;
  for (float x : sample) {
    const double d = x - m.mean;
    m.variance += d * d / n;
    third += d * d * d / n;
    fourth += d * d * d * d / n;
  }
  m.skewness = third / std::pow(m.variance, 1.5);
  m.kurtosis = fourth / (m.variance * m.variance);
  return m;
}

double correlation_at_lag(const std::vector<float>& sample, size_t lag) {
  const Moments m = moments(sample);
  double sum = 0;
  for (size_t i = 0; i + lag < sample.size(); ++i) sum += (sample[i] - m.mean) * (sample[i + lag] - m.mean);
  return sum / m.variance / static_cast<double>(sample.size() - lag);
}

// The known answers of Random123, the paper's library.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox(0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(plain_philox({0, 0}, {0, 0, 0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(plain_philox({kOnes, kOnes}, {kOnes, kOnes, kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(plain_philox({0xa4093822, 0x299f31d0}, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UsesAllBitsOfKeyAndCounter) {
  constexpr uint32_t kSeed = 41;
  std::printf("seed %u\n", kSeed);
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t key = random(), counter = random();
    EXPECT_EQ(philox(key, counter),
              plain_philox({static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
                           {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}));
  }
}

TEST(RandomNumbers, UniformIsInsideItsInterval) {
  const uint64_t key = random_key(5, "stream");
  std::vector<float> sample;
  for (uint64_t i = 0; i < 100000; ++i) {
    const double x = uniform01(key, i);
    ASSERT_GE(x, 0);
    ASSERT_LT(x, 1);
    sample.push_back(static_cast<float>(x));
  }
  EXPECT_LT(kolmogorov(sample, [](double x) { return x; }), 2.2);
}

TEST(RandomNumbers, KeysSeparateSeedsAndNames) {
  EXPECT_EQ(random_key(1, "a"), random_key(1, "a"));
  EXPECT_NE(random_key(1, "a"), random_key(2, "a"));
  EXPECT_NE(random_key(1, "a"), random_key(1, "b"));
  EXPECT_NE(random_key(1, ""), random_key(1, std::string(1, '\0')));
}

TEST(InitialValue, IsAFunctionOfSeedAndName) {
  EXPECT_EQ(normals(101, 3, "a"), normals(101, 3, "a"));
  EXPECT_NE(normals(101, 3, "a"), normals(101, 4, "a"));
  EXPECT_NE(normals(101, 3, "a"), normals(101, 3, "b"));
}

// An element depends on its own number alone: not on the size of the tensor, its shape, or on how many
// threads shared the work (large tensors are made by several).
TEST(InitialValue, ElementsDoNotDependOnSizeOrThreads) {
  for (const Initializer initializer :
       {Initializer{Initializer::kNormal, 0.5}, Initializer{Initializer::kUniform, 0.5}}) {
    const std::vector<float> large = values_of(state_of(DType::F32, (5 << 20) + 3, initializer));
    for (const int64_t count : {1, 2, 3, 1000, (1 << 20) - 1, (2 << 20) + 1}) {
      const std::vector<float> small = values_of(state_of(DType::F32, count, initializer));
      ASSERT_EQ(small.size(), static_cast<size_t>(count));
      EXPECT_TRUE(std::equal(small.begin(), small.end(), large.begin())) << count << " elements";
    }
    State matrix = state_of(DType::F32, 1, initializer);
    matrix.type.shape = {Dim(7), Dim(9)};
    EXPECT_TRUE(std::equal(large.begin(), large.begin() + 63, values_of(matrix).begin()));
  }
}

TEST(InitialValue, APartHasTheNumbersOfTheWhole) {
  constexpr int64_t kCount = (3 << 20) + 5;
  for (const Initializer initializer :
       {Initializer{Initializer::kNormal, 1}, Initializer{Initializer::kUniform, 1},
        Initializer{Initializer::kConstant, 3}})
    for (const DType dtype : {DType::F32, DType::BF16}) {
      const std::vector<std::byte> whole = initial_value(state_of(dtype, kCount, initializer), 5);
      const int64_t size = size_of(dtype);
      for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 1},
                                         {1, 1},
                                         {1, 2},
                                         {2, 5},
                                         {7, 0},
                                         {kCount - 3, 3},
                                         {3, (2 << 20) + 1},
                                         {999, kCount - 999}}) {
        const std::vector<std::byte> part = initial_values("w", initializer, dtype, 5, begin, count);
        ASSERT_EQ(part.size(), static_cast<size_t>(count * size));
        EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + begin * size))
            << to_string(initializer) << " " << begin << " " << count;
      }
    }
}

// Of flat and cut states, on every mesh, in each rank's pieces.
TEST(InitialValue, RanksHaveTogetherWhatOneHas) {
  const std::vector<testing::ModelTensor> tensors = {
      {"a", State::kWeight, DType::F32, {5, 3}, {Initializer::kNormal, 1}},
      {"b", State::kWeight, DType::F32, {4}, {Initializer::kOnes, 0}},
      {"z", State::kWeight, DType::F32, {2}, {Initializer::kZeros, 0}},
      {"c", State::kWeight, DType::F32, {7}, {Initializer::kUniform, 1}}};
  std::vector<float> expected;
  for (const testing::ModelTensor& tensor : tensors)
    for (float value : values_of(testing::whole_state(tensor), 9)) expected.push_back(value);
  for (const Mesh& mesh : {Mesh{1, 1}, Mesh{1, 2}, Mesh{2, 3}, Mesh{4, 2}}) {
    const std::vector<MeshGroup> cut = {MeshGroup::kNode, MeshGroup::kCrossNode};
    State replica = testing::flat_state("r", tensors, mesh, {MeshGroup::kNode});
    replica.kind = State::kReplica;
    testing::ShardedModel model(mesh, {testing::flat_state("f", tensors, mesh, cut), replica});
    for (int64_t rank = 0; rank < mesh.ranks(); ++rank) {
      for (const State& state : model.executor(rank).plan().states)
        initialize_state(state, 9, model.executor(rank), rank);
      const State& state = model.executor(rank).state("f");
      std::vector<float> piece(static_cast<size_t>(state.type.shape[0].number()));
      model.executor(rank).read_state("f", piece.data());
      const auto index = static_cast<size_t>(rank % mesh.local * mesh.nodes + rank / mesh.local);
      for (size_t i = 0; i < piece.size(); ++i) {
        const size_t at = index * piece.size() + i;
        EXPECT_EQ(piece[i], at < expected.size() ? expected[at] : 0) << at << " on rank " << rank;
      }
      const std::string copy = model.storage(model.executor(rank).state("r"), rank);
      EXPECT_EQ(copy, std::string(copy.size(), '\0'));  // a replica is made from weights
    }
  }
}

TEST(InitialValue, NormalHasItsMoments) {
  constexpr int64_t kCount = 1 << 20;
  const double deviation = 5 / std::sqrt(static_cast<double>(kCount));  // five standard errors
  const std::vector<float> sample = normals(kCount, 7);
  const Moments m = moments(sample);
  EXPECT_NEAR(m.mean, 0, deviation);
  EXPECT_NEAR(m.variance, 1, deviation * std::sqrt(2.0));
  EXPECT_NEAR(m.skewness, 0, deviation * std::sqrt(6.0));
  EXPECT_NEAR(m.kurtosis, 3, deviation * std::sqrt(24.0));
  EXPECT_LT(kolmogorov(sample, [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }), 2.2);
  for (const size_t lag : {1, 2, 3, 64, 1000})
    EXPECT_NEAR(correlation_at_lag(sample, lag), 0, deviation) << "lag " << lag;
  // The tails: one in 15,787 lies beyond four deviations, and none where none can be (53 bits).
  const auto beyond = std::count_if(sample.begin(), sample.end(), [](float x) { return std::abs(x) > 4; });
  EXPECT_GT(beyond, 30);
  EXPECT_LT(beyond, 110);
  EXPECT_TRUE(std::all_of(sample.begin(), sample.end(), [](float x) { return std::abs(x) < 9; }));
}

TEST(InitialValue, NormalScales) {
  const std::vector<float> unit = normals(1001);
  const std::vector<float> scaled = values_of(state_of(DType::F32, 1001, {Initializer::kNormal, 0.02}));
  for (size_t i = 0; i < unit.size(); ++i) EXPECT_NEAR(scaled[i], 0.02 * unit[i], 1e-7);
  const std::vector<float> none = values_of(state_of(DType::F32, 11, {Initializer::kNormal, 0}));
  for (float x : none) EXPECT_EQ(x, 0);
}

TEST(InitialValue, UniformHasItsMoments) {
  constexpr int64_t kCount = 1 << 20;
  const std::vector<float> sample = values_of(state_of(DType::F32, kCount, {Initializer::kUniform, 2}), 8);
  const double deviation = 5 / std::sqrt(static_cast<double>(kCount));
  const Moments m = moments(sample);
  EXPECT_NEAR(m.mean, 0, deviation * 2 / std::sqrt(3.0));
  EXPECT_NEAR(m.variance, 4.0 / 3, deviation * 4 * std::sqrt(4.0 / 45));
  EXPECT_NEAR(m.kurtosis, 1.8, 0.02);
  EXPECT_LT(kolmogorov(sample, [](double x) { return (x + 2) / 4; }), 2.2);
  for (float x : sample) ASSERT_LE(std::abs(x), 2);
}

TEST(InitialValue, DifferentStatesAreIndependent) {
  constexpr int64_t kCount = 1 << 18;
  const std::vector<float> a = normals(kCount, 1, "layers.0.weight"),
                           b = normals(kCount, 1, "layers.1.weight"),
                           c = normals(kCount, 2, "layers.0.weight");
  const auto correlation = [](const std::vector<float>& x, const std::vector<float>& y) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(x[i]) * y[i];
    return sum / static_cast<double>(x.size());
  };
  const double deviation = 5 / std::sqrt(static_cast<double>(kCount));
  EXPECT_NEAR(correlation(a, b), 0, deviation);
  EXPECT_NEAR(correlation(a, c), 0, deviation);
}

TEST(InitialValue, ConstantsOfEveryType) {
  const Initializer two{Initializer::kConstant, 2}, one{Initializer::kOnes, 0}, zero{Initializer::kZeros, 0};
  EXPECT_EQ(values_of<float>(state_of(DType::F32, 3, {Initializer::kConstant, -0.5})),
            (std::vector<float>{-0.5f, -0.5f, -0.5f}));
  EXPECT_EQ(values_of<double>(state_of(DType::F64, 2, two)), (std::vector<double>{2, 2}));
  EXPECT_EQ(values_of<int32_t>(state_of(DType::I32, 2, two)), (std::vector<int32_t>{2, 2}));
  EXPECT_EQ(values_of<int64_t>(state_of(DType::I64, 2, {Initializer::kConstant, -7})),
            (std::vector<int64_t>{-7, -7}));
  EXPECT_EQ(values_of<uint8_t>(state_of(DType::U8, 2, two)), (std::vector<uint8_t>{2, 2}));
  EXPECT_EQ(values_of<uint16_t>(state_of(DType::BF16, 2, one)), (std::vector<uint16_t>{0x3F80, 0x3F80}));
  EXPECT_EQ(values_of<float>(state_of(DType::F32, 2, one)), (std::vector<float>{1, 1}));
  for (const DType dtype : kAllDTypes) {
    const std::vector<std::byte> bytes = initial_value(state_of(dtype, 5, zero), 1);
    EXPECT_EQ(bytes.size(), static_cast<size_t>(5 * size_of(dtype))) << to_string(dtype);
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
  }
}

TEST(InitialValue, Bf16IsRoundedToNearestEven) {
  const std::vector<float> exact = values_of(state_of(DType::F32, 5001, {Initializer::kNormal, 1}));
  const std::vector<uint16_t> rounded =
      values_of<uint16_t>(state_of(DType::BF16, 5001, {Initializer::kNormal, 1}));
  for (size_t i = 0; i < exact.size(); ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(rounded[i]) << 16);
    const float above = std::bit_cast<float>(static_cast<uint32_t>(rounded[i] + 1) << 16);
    EXPECT_LE(std::abs(value - exact[i]), std::abs(above - value) / 2) << i;
  }
}

TEST(InitialValue, RefusesWhatATypeCannotHold) {
  const Initializer normal{Initializer::kNormal, 1}, half{Initializer::kConstant, 0.5},
      minus{Initializer::kConstant, -1};
  for (const State& state : {state_of(DType::I32, 2, normal), state_of(DType::U8, 2, normal),
                             state_of(DType::I64, 2, half), state_of(DType::U8, 2, minus)}) {
    try {
      initial_value(state, 0);
      ADD_FAILURE() << to_string(state.initializer);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("model.kumi:3:1: the state \"w\""), std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace kumi
