// Every case of the table, op by op: the device's kernel against the reference, and the gradient rule,
// evaluated by references, against central differences of the op's own reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "graph/uses.h"
#include "ops/all_ops.h"
#include "tests/ops/device_run.h"
#include "tests/ops/op_cases.h"
#include "tests/support/gpu.h"

namespace kumi {
namespace {

using testing::add_input;
using testing::all_cases;
using testing::cases_of;
using testing::DeviceRun;
using testing::evaluate;
using testing::graph_of;
using testing::OpCase;
using testing::operand_values;
using testing::reference_results;
using testing::shared_device;
using testing::Tensors;
using testing::Tolerance;
using testing::type_of;
using testing::zeros;
using Operands = std::vector<std::optional<ReferenceTensor>>;

Tensors feeds_of(const Operands& operands) {
  Tensors feeds;
  for (size_t i = 0; i < operands.size(); ++i)
    if (operands[i]) feeds[concat("operand", i)] = *operands[i];
  return feeds;
}

double largest(const std::vector<double>& data) {
  double most = 0;
  for (double x : data)
    if (std::isfinite(x)) most = std::max(most, std::abs(x));
  return most;
}

// The number of terms in a sum is no more than the elements of an operand for each of the result, or
// than its longest axis (a matrix product).
Tolerance tolerance_of(const Graph& graph, const Operands& operands, const ReferenceTensor& result,
                       const std::string& result_name) {
  Tolerance tolerance;
  bool all_f64 = result.dtype == DType::F64;
  double terms = 1;
  for (const std::optional<ReferenceTensor>& operand : operands) {
    if (!operand) continue;
    all_f64 = all_f64 && (operand->dtype == DType::F64 || !is_floating(operand->dtype));
    terms = std::max(terms, static_cast<double>(operand->size()) / static_cast<double>(result.size()));
    for (int64_t size : operand->shape) terms = std::max(terms, static_cast<double>(size));
  }
  Fusion fusion = fusion_of(graph, graph.nodes.back());
  bool adds_up = fusion != Fusion::kPointwise && fusion != Fusion::kIndexing;
  tolerance.computed_in = all_f64 ? DType::F64 : DType::F32;
  tolerance.terms = adds_up ? terms : 1;
  // Attention's probabilities, and their gradients, are operands of a second product. What they are
  // divided by is not.
  const OpDef& op = op_of(graph.nodes.back());
  if (op.is_product && !op.matmul && operands[0]->dtype == DType::BF16 && result_name != "lse")
    tolerance.terms_in = DType::BF16;
  tolerance.scale = std::max(1.0, largest(result.data));
  return tolerance;
}

// An op on a device.
class OpTable : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(OpTable, KernelMatchesReference) {
  const auto& [op, device] = GetParam();
  if (device == "cuda" && !testing::why_no_gpu().empty()) GTEST_SKIP() << testing::why_no_gpu();
  std::vector<OpCase> cases = cases_of(op);
  std::vector<Operands> operands;
  Module module;
  module.name = "cases";
  for (size_t i = 0; i < cases.size(); ++i) {
    operands.push_back(operand_values(cases[i]));
    try {
      module.graphs.push_back(graph_of(cases[i], operands[i], concat("case", i)));
    } catch (const Error& error) {
      FAIL() << to_string(cases[i]) << "\n" << error.what();
    }
  }
  std::optional<DeviceRun> run;
  try {
    run.emplace(module, PlanOptions{}, shared_device(device));
  } catch (const Error& error) {
    FAIL() << error.what();
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(to_string(cases[i]));
    Tensors found = run->run(concat("case", i), feeds_of(operands[i]));
    const Node& node = module.graphs[i].nodes.back();
    std::vector<ReferenceTensor> wanted = reference_results(node.op, node.attributes, operands[i]);
    for (size_t r = 0; r < wanted.size(); ++r) {
      if (std::count(cases[i].scratch.begin(), cases[i].scratch.end(), r) != 0) continue;
      const std::vector<std::string>& names = op_of(node).results;
      Tolerance tolerance =
          tolerance_of(module.graphs[i], operands[i], wanted[r], names[std::min(r, names.size() - 1)]);
      EXPECT_EQ(difference(found.at(concat("result", r)), wanted[r], tolerance), "") << "result " << r;
    }
  }
}

// ---- Gradients.

class GradientCheck {
 public:
  explicit GradientCheck(const OpCase& one)
      : case_(one), operands_(operand_values(one)), random_(one.seed + 1000) {
    graph_ = graph_of(case_, operands_, "gradient");
    node_ = graph_.nodes.back();
    std::normal_distribution<double> normal;
    for (size_t r = 0; r < node_.results.size(); ++r) {
      const Type type = graph_.type(node_.results[r]);
      bool chosen = case_.differentiated.empty()
                        ? is_floating(type.dtype)
                        : std::count(case_.differentiated.begin(), case_.differentiated.end(), r) != 0;
      weights_.emplace_back();
      if (!chosen) continue;
      weights_[r] = zeros(type);
      for (double& w : weights_[r]->data) w = normal(random_);
    }
  }

  void run() {
    std::vector<bool> all;
    for (const std::optional<ReferenceTensor>& operand : operands_)
      all.push_back(operand && is_floating(operand->dtype));
    auto given = [](const std::optional<ReferenceTensor>& weight) { return weight.has_value(); };
    bool reaches_loss = std::any_of(weights_.begin(), weights_.end(), given);
    // Of integers only: autodiff asks for no gradient.
    if (!reaches_loss || std::count(all.begin(), all.end(), true) == 0) return;
    Operands gradients = gradients_by_rule(all);
    for (size_t i = 0; i < all.size(); ++i)
      if (all[i]) compare(i, gradients[i]);
    check_one_at_a_time(all, gradients);
  }

 private:
  // What the rule gives, evaluated. Nothing where it gives nothing.
  Operands gradients_by_rule(const std::vector<bool>& needed) {
    Graph graph = graph_;
    graph.outputs.clear();
    GraphBuilder builder(graph);
    GradientContext context{builder, node_, {}, needed};
    Tensors feeds = feeds_of(operands_);
    for (size_t r = 0; r < weights_.size(); ++r) {
      context.result_gradients.push_back(kNone);
      if (!weights_[r]) continue;
      std::string name = concat("weight", r);
      context.result_gradients[r] = add_input(builder, name, type_of(*weights_[r]));
      feeds[name] = *weights_[r];
    }
    std::vector<ValueId> gradients = op_of(node_).gradient(context);
    EXPECT_EQ(gradients.size(), operands_.size());
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i] == kNone || !needed[i]) continue;
      EXPECT_EQ(to_string(graph.type(gradients[i])), to_string(type_of(*operands_[i]))) << "operand " << i;
      graph.outputs.push_back({concat(i), gradients[i]});
    }
    Tensors outputs = evaluate(graph, feeds, nullptr);
    Operands found(operands_.size());
    for (const auto& [name, tensor] : outputs) found[std::stoul(name)] = tensor;
    return found;
  }

  struct Loss {
    double value = 0;
    double magnitude = 0;  // the sum of the terms' absolute values
  };

  Loss loss() const {
    std::vector<ReferenceTensor> results = reference_results(node_.op, node_.attributes, operands_);
    Loss loss;
    for (size_t r = 0; r < results.size(); ++r)
      for (size_t i = 0; weights_[r] && i < results[r].data.size(); ++i) {
        double term = results[r].data[i] * weights_[r]->data[i];
        loss.value += term;
        loss.magnitude += std::abs(term);
      }
    return loss;
  }

  void compare(size_t operand, const std::optional<ReferenceTensor>& gradient) {
    // Elements for which the loss is computed twice.
    constexpr size_t kMostElements = 24;
    std::vector<double>& data = operands_[operand]->data;
    std::vector<size_t> elements(data.size());
    std::iota(elements.begin(), elements.end(), 0);
    std::shuffle(elements.begin(), elements.end(), random_);
    elements.resize(std::min(elements.size(), kMostElements));
    for (size_t i : elements) {
      double original = data[i], step = 1e-5 * std::max(1.0, std::abs(original));
      data[i] = original + step;
      Loss above = loss();
      data[i] = original - step;
      Loss below = loss();
      data[i] = original;
      double wanted = (above.value - below.value) / (2 * step), found = gradient ? gradient->data[i] : 0;
      // The truncated third derivative, and the rounding of the two losses.
      double allowed = 1e-7 * (1 + std::abs(wanted)) + 1e-15 * above.magnitude / step;
      EXPECT_NEAR(found, wanted, allowed) << "operand " << operand << ", element " << i;
    }
  }

  // The rule may leave out what is not needed, but nothing that is.
  void check_one_at_a_time(const std::vector<bool>& all, const Operands& gradients) {
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i]) continue;
      std::vector<bool> one(all.size(), false);
      one[i] = true;
      Operands alone = gradients_by_rule(one);
      ASSERT_EQ(alone[i].has_value(), gradients[i].has_value()) << "operand " << i;
      if (alone[i]) {
        EXPECT_EQ(alone[i]->data, gradients[i]->data) << "operand " << i;
      }
    }
  }

  const OpCase& case_;
  Operands operands_;
  Operands weights_;  // by result
  Graph graph_;
  Node node_;
  std::mt19937 random_;
};

class OpGradients : public ::testing::TestWithParam<std::string> {};

TEST_P(OpGradients, MatchFiniteDifferences) {
  for (const OpCase& one : cases_of(GetParam())) {
    SCOPED_TRACE(to_string(one));
    try {
      GradientCheck(one).run();
    } catch (const Error& error) {
      FAIL() << error.what();
    }
  }
}

std::vector<std::string> ops_with_cases(bool with_gradient) {
  std::set<std::string> names;
  for (const OpCase& one : all_cases())
    if (!with_gradient || op_of(one.op).gradient) names.insert(one.op);
  return {names.begin(), names.end()};
}

std::string op_name(const ::testing::TestParamInfo<std::string>& info) {
  return info.param;
}

std::string op_of_device(const ::testing::TestParamInfo<std::tuple<std::string, std::string>>& info) {
  return std::get<0>(info.param);
}

INSTANTIATE_TEST_SUITE_P(Ops, OpTable,
                         ::testing::Combine(::testing::ValuesIn(ops_with_cases(false)),
                                            ::testing::Values("cpu")),
                         op_of_device);
// CUDA kernels, in a random order of threads.
INSTANTIATE_TEST_SUITE_P(EmulatedOps, OpTable,
                         ::testing::Combine(::testing::ValuesIn(ops_with_cases(false)),
                                            ::testing::Values("cuda_emu")),
                         op_of_device);
INSTANTIATE_TEST_SUITE_P(GpuOps, OpTable,
                         ::testing::Combine(::testing::ValuesIn(ops_with_cases(false)),
                                            ::testing::Values("cuda")),
                         op_of_device);
INSTANTIATE_TEST_SUITE_P(Ops, OpGradients, ::testing::ValuesIn(ops_with_cases(true)), op_name);

// ---- The table itself.

TEST(OpTableItself, HasACaseForEveryOp) {
  register_all_ops();
  std::vector<std::string> names = ops_with_cases(false);
  for (const OpDef* op : all_ops()) {
    if (op->is_state_access) continue;  // state_op_test.cpp
    if (op->collective) continue;       // tests/golden/mesh_test.cpp, tests/runtime/communicator_test.cpp
    EXPECT_TRUE(std::binary_search(names.begin(), names.end(), op->name))
        << "no case of '" << op->name << "' in tests/ops/" << op->family << "_cases.cpp";
  }
}

TEST(OpTableItself, EveryOpIsComplete) {
  register_all_ops();
  for (const OpDef* op : all_ops()) {
    SCOPED_TRACE(op->name);
    EXPECT_FALSE(op->family.empty());
    EXPECT_TRUE(op->doc.ends_with(".")) << op->doc;
    for (const OperandSpec& operand : op->operands) EXPECT_FALSE(operand.doc.empty()) << operand.name;
    for (const AttributeSpec& attribute : op->attributes)
      EXPECT_FALSE(attribute.doc.empty()) << attribute.name;
    EXPECT_EQ(op->reference == nullptr, op->is_state_access || op->collective);
    bool runs = !op->is_view && !op->moves_parts && !op->is_state_access && !op->collective;
    EXPECT_EQ(op->kernel != nullptr || op->matmul != nullptr, runs);
    EXPECT_FALSE(op->kernel && op->matmul);
  }
}

}  // namespace
}  // namespace kumi
