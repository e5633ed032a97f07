// What quantization keeps of values, whatever they are, on the compiled kernels: error bounds by the scheme's
// steps, exact zeros and extremes, codes that stay when quantized again, values that are not finite, the same
// decisions as the reference at ties.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <iostream>
#include <limits>
#include <random>

#include "graph/builder.h"
#include "graph/quantized.h"
#include "ops/all_ops.h"
#include "tests/ops/device_run.h"

namespace kumi {
namespace {

using testing::DeviceRun;
using testing::evaluate;
using testing::Tensors;

constexpr uint32_t kSeed = 29;
constexpr int64_t kRows = 3;
constexpr double kSmallest = 1.401298464324817e-45;  // f32, subnormal
constexpr double kRounding = 0x1p-20;                // of some operations in f32, relative

ReferenceTensor rows_of(std::vector<double> data, int64_t size) {
  for (double& x : data) x = static_cast<float>(x);
  return {DType::F32, {static_cast<int64_t>(data.size()) / size, size}, std::move(data)};
}

Type input_type(const ReferenceTensor& x) {
  Type type{x.dtype, {}};
  for (int64_t n : x.shape) type.shape.emplace_back(n);
  return type;
}

// One graph from x to what `build` gives.
Module module_of(const ReferenceTensor& x,
                 const std::function<std::vector<Output>(GraphBuilder&, ValueId)>& build) {
  register_all_ops();
  Module module;
  module.name = "quantization";
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  const Type type = input_type(x);
  const ValueId input =
      builder.call("input", {}, {{"name", std::string("x")}, {"dtype", type.dtype}, {"shape", type.shape}});
  graph.outputs = build(builder, input);
  module.graphs.push_back(std::move(graph));
  return module;
}

// Outputs "y", the values made again, and "codes".
Tensors there_and_back(const std::string& name, const ReferenceTensor& x) {
  const QuantizationScheme scheme = quantization_scheme(name);
  return DeviceRun(module_of(x,
                             [&](GraphBuilder& builder, ValueId input) {
                               const std::vector<ValueId> parts = quantized(builder, input, scheme);
                               return std::vector<Output>{
                                   {"codes", parts[0]},
                                   {"y", dequantized(builder, parts, scheme, x.shape.back(), DType::F32)}};
                             }))
      .run("forward", {{"x", x}});
}

// The op alone, by kernel and by reference: "codes" and "scales".
std::pair<Tensors, Tensors> both_quantize(const std::string& code_book, int64_t block,
                                          const ReferenceTensor& x) {
  const Module module = module_of(x, [&](GraphBuilder& builder, ValueId input) {
    const std::vector<ValueId> parts =
        builder.build("quantize", {input}, {{"code_book", code_book}, {"block", Dim(block)}});
    return std::vector<Output>{{"codes", parts[0]}, {"scales", parts[1]}};
  });
  return {DeviceRun(module).run("forward", {{"x", x}}), evaluate(module.graphs[0], {{"x", x}}, nullptr)};
}

// Codes of a row, one an element.
std::vector<int> codes_of(const ReferenceTensor& codes, const std::string& code_book, int64_t row,
                          int64_t size) {
  std::vector<int> result;
  const bool is_packed = bits_of(code_book) == 4;
  for (int64_t i = 0; i < size; ++i) {
    const auto byte =
        static_cast<int>(codes.data[static_cast<size_t>(row * codes.shape.back() + (is_packed ? i / 2 : i))]);
    result.push_back(!is_packed ? byte : i % 2 == 0 ? byte % 16 : byte / 16);
  }
  return result;
}

double half_widest_gap(const std::string& code_book) {
  const std::vector<double> table = code_table(code_book);
  double widest = 0;
  for (size_t code = 1; code < table.size(); ++code) widest = std::max(widest, table[code] - table[code - 1]);
  return widest / 2;
}

int code_of_zero(const std::string& code_book) {
  const std::vector<double> table = code_table(code_book);
  return static_cast<int>(std::find(table.begin(), table.end(), 0.0) - table.begin());
}

std::vector<double> scales_of_row(const ReferenceTensor& x, int64_t row, int64_t block) {
  const int64_t size = x.shape.back();
  std::vector<double> scales(static_cast<size_t>((size + block - 1) / block));
  for (int64_t i = 0; i < size; ++i) {
    double& scale = scales[static_cast<size_t>(i / block)];
    scale = std::max(scale, std::abs(x.data[static_cast<size_t>(row * size + i)]));
  }
  return scales;
}

// How far each scale of a row may be off: nothing, or half a step of the second level.
std::vector<double> scale_errors(const std::vector<double>& scales, const QuantizationScheme& scheme) {
  std::vector<double> errors(scales.size());
  if (!scheme.is_double) return errors;
  double mean = 0, largest = 0;
  for (double scale : scales) {
    mean += scale / static_cast<double>(scales.size());
    largest = std::max(largest, scale);
  }
  for (size_t i = 0; i < scales.size(); ++i) {
    const size_t begin =
        i / static_cast<size_t>(scheme.scale_block) * static_cast<size_t>(scheme.scale_block);
    double widest = 0;
    for (size_t j = begin; j < std::min(scales.size(), begin + static_cast<size_t>(scheme.scale_block)); ++j)
      widest = std::max(widest, std::abs(scales[j] - mean));
    errors[i] = widest / 254 + kRounding * largest;
  }
  return errors;
}

struct Distribution {
  const char* name;
  std::function<double(std::mt19937&, int64_t)> value;  // of the i-th element
};

double normal(std::mt19937& random) {
  return std::normal_distribution<double>()(random);
}

const Distribution kDistributions[] = {
    {"normal", [](std::mt19937& random, int64_t) { return normal(random); }},
    {"uniform",
     [](std::mt19937& random, int64_t) { return std::uniform_real_distribution<double>(-3, 3)(random); }},
    {"heavy_tailed", [](std::mt19937& random, int64_t) { return std::pow(normal(random), 5); }},
    {"one_sign", [](std::mt19937& random, int64_t) { return 5 + normal(random); }},
    // Blocks that have nothing in common.
    {"of_all_magnitudes",
     [](std::mt19937& random, int64_t i) {
       return std::ldexp(normal(random), static_cast<int>(i / 64 % 5 * 20) - 40);
     }},
    {"with_zeros", [](std::mt19937& random, int64_t i) { return i / 64 % 2 == 0 ? 0.0 : normal(random); }},
    {"subnormal", [](std::mt19937& random, int64_t) { return normal(random) * 1e-40; }},
    {"huge", [](std::mt19937& random, int64_t) { return std::tanh(normal(random)) * 1e34; }},
};

class QuantizationProperties : public ::testing::TestWithParam<std::string> {
 protected:
  QuantizationProperties() { std::cout << "seed " << kSeed << std::endl; }
  const std::string name_ = GetParam();
  const QuantizationScheme scheme_ = quantization_scheme(name_);
};

// One element, tails of every kind, more scales than go into a block of the second level.
const int64_t kSizes[] = {1, 2, 3, 63, 64, 65, 127, 129, 255, 257, 1000, 64 * 256 + 65};

TEST_P(QuantizationProperties, ErrorsAreWithinHalfAStep) {
  for (const Distribution& distribution : kDistributions)
    for (const int64_t size : kSizes) {
      SCOPED_TRACE(concat(distribution.name, ", rows of ", size));
      std::mt19937 random(kSeed);
      std::vector<double> data;
      for (int64_t i = 0; i < kRows * size; ++i) data.push_back(distribution.value(random, i % size));
      const ReferenceTensor x = rows_of(std::move(data), size);
      const Tensors result = there_and_back(name_, x);
      for (int64_t row = 0; row < kRows; ++row) {
        const std::vector<double> scales = scales_of_row(x, row, scheme_.block);
        const std::vector<double> errors = scale_errors(scales, scheme_);
        double worst = 0;  // share of what is allowed
        for (int64_t i = 0; i < size; ++i) {
          const auto at = static_cast<size_t>(row * size + i), block = static_cast<size_t>(i / scheme_.block);
          const double allowed = (half_widest_gap(scheme_.code_book) + kRounding) * scales[block] +
                                 errors[block] + 4 * kSmallest;
          const double error = std::abs(result.at("y").data[at] - x.data[at]);
          worst = std::isfinite(error) ? std::max(worst, error / allowed) : HUGE_VAL;
        }
        EXPECT_LE(worst, 1.0);
      }
    }
}

// The largest magnitude of a block has the first or last code, zero the middle one: exactly zero again.
TEST_P(QuantizationProperties, ExtremesAndZerosHaveCodesOfTheirOwn) {
  constexpr int64_t kSize = 200;  // the last block is short
  const auto top = static_cast<int>(code_table(scheme_.code_book).size()) - 1;
  for (const double scale : {1.0, 3.7, 1e-30, 1e30, 2e-40}) {
    SCOPED_TRACE(scale);
    std::vector<double> data(kSize);
    std::mt19937 random(kSeed);
    for (double& x : data) x = std::uniform_real_distribution<double>(-0.5, 0.5)(random) * scale;
    for (int64_t i = 0; i < kSize; i += 8) data[static_cast<size_t>(i)] = 0;
    for (int64_t i = 1; i < kSize; i += 16) data[static_cast<size_t>(i)] = scale;
    for (int64_t i = 2; i < kSize; i += 16) data[static_cast<size_t>(i)] = -scale;
    const ReferenceTensor x = rows_of(data, kSize);
    const Tensors result = there_and_back(name_, x);
    const std::vector<int> codes = codes_of(result.at("codes"), scheme_.code_book, 0, kSize);
    for (int64_t i = 0; i < kSize; ++i) {
      const auto at = static_cast<size_t>(i);
      const double y = result.at("y").data[at];
      if (i % 8 == 0) {
        EXPECT_EQ(codes[at], code_of_zero(scheme_.code_book)) << i;
        EXPECT_EQ(y, 0) << i;
      } else if (i % 16 == 1 || i % 16 == 2) {
        EXPECT_EQ(codes[at], i % 16 == 1 ? top : 0) << i;
        // Scales that are all the same are their mean, to a rounding.
        EXPECT_NEAR(y, x.data[at], kRounding * scale + 2 * kSmallest) << i;
      }
    }
  }
}

TEST_P(QuantizationProperties, BlocksOfZerosStayZero) {
  constexpr int64_t kSize = 64 * 9 + 5;
  for (const bool all : {true, false}) {
    SCOPED_TRACE(all ? "all" : "every second");
    std::vector<double> data(kSize);
    std::mt19937 random(kSeed);
    const int64_t block = scheme_.block;
    for (int64_t i = 0; i < kSize; ++i)
      if (!all && i / block % 2 == 1) data[static_cast<size_t>(i)] = normal(random);
    const Tensors result = there_and_back(name_, rows_of(data, kSize));
    for (int64_t i = 0; i < kSize; ++i)
      if (all || i / block % 2 == 0) {
        EXPECT_EQ(result.at("y").data[static_cast<size_t>(i)], 0) << i;
      }
  }
}

// A second time the codes are the same, since the largest magnitude is one of the table's ends again. Not
// where the second level has made a small scale zero or negative: it keeps scales to a share of the largest.
TEST_P(QuantizationProperties, QuantizingAgainGivesTheSameCodes) {
  int64_t compared = 0;
  for (const Distribution& distribution : kDistributions) {
    if (std::string(distribution.name) == "subnormal") continue;  // too few digits to tell codes apart
    for (const int64_t size : {int64_t{1}, int64_t{65}, int64_t{1000}}) {
      SCOPED_TRACE(concat(distribution.name, ", rows of ", size));
      std::mt19937 random(kSeed + 1);
      std::vector<double> data;
      for (int64_t i = 0; i < kRows * size; ++i) data.push_back(distribution.value(random, i % size));
      const ReferenceTensor x = rows_of(std::move(data), size);
      const Tensors first = there_and_back(name_, x), second = there_and_back(name_, first.at("y"));
      for (int64_t row = 0; row < kRows; ++row) {
        const std::vector<double> scales = scales_of_row(x, row, scheme_.block);
        const std::vector<double> errors = scale_errors(scales, scheme_);
        const std::vector<int> a = codes_of(first.at("codes"), scheme_.code_book, row, size),
                               b = codes_of(second.at("codes"), scheme_.code_book, row, size);
        for (int64_t i = 0; i < size; ++i) {
          const auto block = static_cast<size_t>(i / scheme_.block);
          if (scales[block] <= errors[block]) continue;
          EXPECT_EQ(a[static_cast<size_t>(i)], b[static_cast<size_t>(i)]) << row << ", " << i;
          ++compared;
        }
      }
    }
  }
  EXPECT_GT(compared, 10000);
}

// Nothing of a block that holds NaN or infinity comes back as a number; doubly quantized nothing of its row,
// whose scales have a mean. Other rows do not notice.
TEST_P(QuantizationProperties, WhatIsNotFiniteStaysSo) {
  constexpr int64_t kSize = 64 * 10 + 37;
  std::mt19937 random(kSeed);
  std::vector<double> data;
  for (int64_t i = 0; i < kRows * kSize; ++i) data.push_back(normal(random));
  const Tensors sound = there_and_back(name_, rows_of(data, kSize));
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL})
    for (const int64_t place : {int64_t{0}, int64_t{5}, int64_t{31}, int64_t{63}, int64_t{64}, int64_t{300},
                                kSize - 37, kSize - 2, kSize - 1}) {
      SCOPED_TRACE(concat(bad, " at ", place));
      std::vector<double> spoilt = data;
      spoilt[static_cast<size_t>(kSize + place)] = bad;
      const Tensors result = there_and_back(name_, rows_of(spoilt, kSize));
      int64_t numbers = 0, changed = 0;
      for (int64_t i = 0; i < kRows * kSize; ++i) {
        const double y = result.at("y").data[static_cast<size_t>(i)];
        const bool is_hit =
            i / kSize == 1 && (scheme_.is_double || i % kSize / scheme_.block == place / scheme_.block);
        if (is_hit && std::isfinite(y)) ++numbers;
        if (!is_hit && y != sound.at("y").data[static_cast<size_t>(i)]) ++changed;
      }
      EXPECT_EQ(numbers, 0);
      EXPECT_EQ(changed, 0);
    }
}

// Half a byte that belongs to no element holds the code of zero.
TEST_P(QuantizationProperties, TheLastByteOfAnOddRowIsFilledWithZero) {
  if (bits_of(scheme_.code_book) != 4) return;
  for (const int64_t size : {1, 3, 63, 65, 127}) {
    std::vector<double> data(static_cast<size_t>(kRows * size), 1.0);
    const Tensors result = there_and_back(name_, rows_of(data, size));
    const ReferenceTensor& codes = result.at("codes");
    ASSERT_EQ(codes.shape.back(), (size + 1) / 2);
    for (int64_t row = 1; row <= kRows; ++row)
      EXPECT_EQ(static_cast<int>(codes.data[static_cast<size_t>(row * codes.shape.back() - 1)]),
                15 * (name_ == "nf4" ? 1 : 0) + 14 * (name_ == "int4" ? 1 : 0) +
                    16 * code_of_zero(scheme_.code_book))
          << size;
  }
}

// Around every boundary between two codes, by steps of the last bit, for scales that round in many ways.
TEST_P(QuantizationProperties, KernelAndReferenceDecideTheSameAtTies) {
  const std::vector<double> table = code_table(scheme_.code_book);
  std::mt19937 random(kSeed);
  std::vector<float> scales = {1.0F, 0.5F, 3.0F, 127.0F, 254.0F, 14.0F, 0.1F, 1e-30F, 1e30F, 3e-39F};
  for (int i = 0; i < 10; ++i)
    scales.push_back(std::ldexp(1.0F + std::uniform_real_distribution<float>()(random),
                                static_cast<int>(random() % 40) - 20));
  std::vector<double> data;
  for (const float scale : scales)
    for (size_t code = 1; code < table.size(); ++code) {
      auto x = static_cast<float>((table[code - 1] + table[code]) / 2 * static_cast<double>(scale));
      for (int i = 0; i < 3; ++i) x = std::nextafter(x, -HUGE_VALF);
      data.push_back(scale);
      for (int i = 0; i < 7; ++i, x = std::nextafter(x, HUGE_VALF)) data.push_back(x);
    }
  const ReferenceTensor x = rows_of(data, 8);
  const auto [kernel, reference] = both_quantize(scheme_.code_book, 8, x);
  size_t differing = 0;
  std::string first;
  for (int64_t row = 0; row < x.shape[0]; ++row) {
    const std::vector<int> found = codes_of(kernel.at("codes"), scheme_.code_book, row, 8),
                           wanted = codes_of(reference.at("codes"), scheme_.code_book, row, 8);
    for (size_t i = 0; i < 8; ++i) {
      if (found[i] == wanted[i]) continue;
      const size_t at = static_cast<size_t>(row) * 8;
      if (differing++ == 0)
        first = concat(x.data[at + i], " / ", x.data[at], ": ", found[i], ", reference ", wanted[i]);
    }
  }
  EXPECT_EQ(differing, 0u) << "of " << data.size() << ", first " << first;
  EXPECT_EQ(kernel.at("scales").data, reference.at("scales").data);
}

INSTANTIATE_TEST_SUITE_P(Schemes, QuantizationProperties, ::testing::Values("int8", "int4", "nf4"),
                         [](const auto& info) { return info.param; });

// Exactly between two values it is the lower one: where f32 has the place between them.
TEST(Quantization, HalvesGoDown) {
  struct Case {
    const char* code_book;
    double value;
    int code;
  };
  for (const Case& c : {Case{"int8", 0.5, 190}, Case{"int8", -0.5, 63}, Case{"int4", 0.5, 10},
                        Case{"int4", -0.5, 3}, Case{"nf4", -0.848096400499344, 0}}) {
    SCOPED_TRACE(concat(c.code_book, " ", c.value));
    const auto [kernel, reference] = both_quantize(c.code_book, 2, rows_of({1, c.value}, 2));
    EXPECT_EQ(codes_of(kernel.at("codes"), c.code_book, 0, 2)[1], c.code);
    EXPECT_EQ(codes_of(reference.at("codes"), c.code_book, 0, 2)[1], c.code);
  }
}

TEST(Quantization, PartsOfAnotherSchemeAreRefused) {
  const ReferenceTensor x = rows_of(std::vector<double>(128, 1.0), 128);
  const auto message = [&](const char* made, const char* read) -> std::string {
    try {
      (void)module_of(x, [&](GraphBuilder& builder, ValueId input) {
        const std::vector<ValueId> parts = quantized(builder, input, quantization_scheme(made));
        return std::vector<Output>{
            {"y", dequantized(builder, parts, quantization_scheme(read), 128, DType::F32)}};
      });
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message("int8", "nf4").find("2 parts"), std::string::npos) << message("int8", "nf4");
  EXPECT_NE(message("nf4", "int8").find("4 parts"), std::string::npos) << message("nf4", "int8");
  EXPECT_EQ(message("nf4", "nf4"), "no error");
}

}  // namespace
}  // namespace kumi
