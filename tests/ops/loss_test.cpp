// What the loss makes of logits that are far from 0 or minus infinity, on every device.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "ops/all_ops.h"
#include "tests/ops/device_run.h"

namespace kumi {
namespace {

using testing::DeviceRun;
using testing::shared_device;
using testing::Tensors;

class Loss : public ::testing::TestWithParam<std::string> {};

ReferenceTensor tensor(DType dtype, std::vector<int64_t> shape, std::vector<double> data) {
  return {dtype, std::move(shape), std::move(data)};
}

// The loss and what it keeps of the rows, at once, or by parts of the classes.
Module loss_module(int64_t rows, int64_t classes, const std::vector<int64_t>& parts) {
  register_all_ops();
  Module module;
  module.name = "loss";
  Graph& graph = module.graphs.emplace_back();
  graph.name = "loss";
  GraphBuilder builder(graph);
  const auto input = [&](const std::string& name, DType dtype, const Shape& shape) {
    return builder.call("input", {}, {{"name", name}, {"dtype", dtype}, {"shape", shape}}, name);
  };
  const ValueId logits = input("logits", DType::F32, {rows, classes}),
                labels = input("labels", DType::I32, {rows}), dloss = input("dloss", DType::F32, {});
  const std::vector<ValueId> whole = builder.build("cross_entropy", {logits, labels});
  const ValueId gradient =
      builder.call("cross_entropy_grad", {logits, labels, whole[3], whole[4], whole[1], dloss});
  const std::vector<ValueId> of_parts =
      builder.build("split", {logits}, {{"axis", Dim(1)}, {"sizes", Shape(parts.begin(), parts.end())}});
  std::vector<ValueId> state;
  std::vector<Attributes> places;
  int64_t first = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    std::vector<ValueId> operands = {of_parts[i], labels};
    operands.insert(operands.end(), state.begin(), state.end());
    places.push_back({{"first", Dim(first)}, {"classes", Dim(classes)}});
    state = builder.build("cross_entropy_part", operands, places.back());
    first += parts[i];
  }
  const std::vector<ValueId> mean =
      builder.build("cross_entropy_mean", {labels, state[0], state[1], state[2]});
  std::vector<ValueId> gradients;
  for (size_t i = 0; i < parts.size(); ++i)
    gradients.push_back(builder.call("cross_entropy_grad",
                                     {of_parts[i], labels, state[0], state[1], mean[1], dloss}, places[i]));
  const ValueId joined = builder.call("concat", gradients, {{"axis", Dim(1)}});
  graph.outputs = {{"loss", whole[0]},      {"row_losses", whole[2]},      {"gradient", gradient},
                   {"parts.loss", mean[0]}, {"parts.row_losses", mean[2]}, {"parts.gradient", joined}};
  return module;
}

TEST_P(Loss, OfLogitsFarFromZeroOrMaskedIsExact) {
  constexpr int64_t kRows = 6, kClasses = 5000;
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  ReferenceTensor logits = tensor(DType::F32, {kRows, kClasses}, {}),
                  labels = tensor(DType::I32, {kRows}, {});
  const double offsets[kRows] = {0, 5000, -5000, 0, 0, 0};
  for (int64_t row = 0; row < kRows; ++row)
    for (int64_t c = 0; c < kClasses; ++c) {
      double x = offsets[row] + 3 * normal(random);
      if (row == 3 && c < 4500) x = -INFINITY;    // whole parts and vectors of it
      if (row == 4 && c % 7 != 3) x = -INFINITY;  // scattered
      if (row == 5) x = c;                        // rises to the end: each chunk has another maximum
      logits.data.push_back(x);
    }
  labels.data = {17, 4999, 0, 4700, 3, 4990};
  testing::round_elements(&logits);
  DeviceRun run(loss_module(kRows, kClasses, {1300, 2000, 1700}), {}, shared_device(GetParam()));
  const Tensors found =
      run.run("loss", {{"logits", logits}, {"labels", labels}, {"dloss", tensor(DType::F32, {}, {6})}});
  for (const std::string prefix : {"", "parts."}) {
    double sum = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      const double* x = &logits.data[row * kClasses];
      const double largest = *std::max_element(x, x + kClasses);
      double total = 0;
      for (int64_t c = 0; c < kClasses; ++c) total += std::exp(x[c] - largest);
      const int64_t label = static_cast<int64_t>(labels.data[row]);
      const double wanted = std::log(total) + (largest - x[label]);
      sum += wanted;
      EXPECT_NEAR(found.at(prefix + "row_losses").data[row], wanted, 1e-6 * std::max(1.0, wanted))
          << prefix << "row " << row;
      for (int64_t c = 0; c < kClasses; ++c) {
        const double p = std::exp(x[c] - largest) / total;
        // Relative to what is near 1, as where the label is; no offset of the logits enters.
        ASSERT_NEAR(found.at(prefix + "gradient").data[row * kClasses + c], p - (c == label ? 1 : 0),
                    1e-6 * p + 1e-7)
            << prefix << "row " << row << ", class " << c;
      }
    }
    EXPECT_NEAR(found.at(prefix + "loss").data[0], sum / kRows, 1e-6 * sum / kRows);
  }
}

TEST_P(Loss, OfRowsThatAreNotNumbersIsNone) {
  constexpr int64_t kClasses = 2000;
  ReferenceTensor logits = tensor(DType::F32, {3, kClasses}, std::vector<double>(3 * kClasses, 1));
  logits.data[5] = NAN;
  logits.data[kClasses + 1999] = INFINITY;
  std::fill(logits.data.begin() + 2 * kClasses, logits.data.end(), -INFINITY);
  DeviceRun run(loss_module(3, kClasses, {1000, 1000}), {}, shared_device(GetParam()));
  const Tensors found = run.run("loss", {{"logits", logits},
                                         {"labels", tensor(DType::I32, {3}, {0, 1, 2})},
                                         {"dloss", tensor(DType::F32, {}, {1})}});
  for (const std::string prefix : {"", "parts."})
    for (int64_t row = 0; row < 3; ++row)
      EXPECT_TRUE(std::isnan(found.at(prefix + "row_losses").data[row])) << prefix << "row " << row;
}

INSTANTIATE_TEST_SUITE_P(Devices, Loss, ::testing::Values("cpu", "cuda_emu"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kumi
