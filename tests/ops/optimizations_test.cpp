// Every optimization can be left out by name: the plan is another, the numbers are the same but for rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "frontend/model_file.h"
#include "graph/op.h"
#include "graph/planned_memory.h"
#include "graph/reorder.h"
#include "graph/uses.h"
#include "ops/all_ops.h"
#include "tests/support/example_model.h"
#include "tests/support/model_run.h"

namespace kumi {
namespace {

using testing::ExampleModel;
using testing::NamedTensors;
using testing::relative_distance;
using testing::run_gradient;
using testing::run_training;
using testing::small_example_models;

constexpr uint64_t kSeed = 23;
// Of a tensor's norm: sums of some hundred terms in another order, each rounded to 2^-24.
constexpr double kTolerance = 1e-5;
constexpr int kSteps = 3;
// GPT-2's attention does not depend on the keys' bias: its gradient is rounding noise, which AdamW turns
// into steps of full size.
constexpr char kNoisyWeight[] = "attn.c_attn.bias";

// One name, or all.
std::vector<std::set<std::string>> left_out() {
  std::vector<std::set<std::string>> sets;
  std::set<std::string> all;
  for (const Optimization& optimization : optimizations()) {
    sets.push_back({optimization.name});
    all.insert(optimization.name);
  }
  sets.push_back(all);
  return sets;
}

PlanOptions without(const std::set<std::string>& names) {
  PlanOptions options;
  options.disabled = names;
  return options;
}

std::string described(const std::set<std::string>& names) {
  return "without " + joined(std::vector<std::string>(names.begin(), names.end()));
}

void expect_same(const NamedTensors& found, const NamedTensors& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    ASSERT_TRUE(found.contains(name)) << name;
    if (name.ends_with(kNoisyWeight) && !name.starts_with("grad.")) continue;
    EXPECT_LE(relative_distance(found.at(name), tensor), kTolerance) << name;
  }
}

class Optimizations : public ::testing::TestWithParam<ExampleModel> {};

TEST_P(Optimizations, ChangeNoGradient) {
  const NamedTensors expected = run_gradient(GetParam(), {}, kSeed);
  EXPECT_TRUE(expected.contains("logits"));
  for (const std::set<std::string>& names : left_out()) {
    SCOPED_TRACE(described(names));
    expect_same(run_gradient(GetParam(), without(names), kSeed), expected);
  }
}

TEST_P(Optimizations, ChangeNoTrainingStep) {
  for (const int64_t accumulation : {1, 3}) {
    PlanOptions options;
    options.optimizer.accumulation = accumulation;
    const NamedTensors expected = run_training(GetParam(), options, kSeed, kSteps);
    EXPECT_LT(expected.at("loss 3").data[0], expected.at("loss 1").data[0]);
    for (const std::set<std::string>& names : left_out()) {
      SCOPED_TRACE(concat(described(names), ", ", accumulation, " micro-batches"));
      options.disabled = names;
      expect_same(run_training(GetParam(), options, kSeed, kSteps), expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Optimizations, ::testing::ValuesIn(small_example_models()),
                         [](const auto& info) {
                           return info.param.file.substr(0, info.param.file.find('.'));
                         });

// ------------------------------------------------------------------------------ what is in the plan

int64_t count_of(const Module& module, const std::function<bool(const Graph&, const Node&)>& is_it) {
  int64_t count = 0;
  for (const Graph& graph : module.graphs)
    count += std::count_if(graph.nodes.begin(), graph.nodes.end(),
                           [&](const Node& node) { return is_it(graph, node); });
  return count;
}

bool is_op(const Node& node, const std::string& op) {
  return node.op == op;
}

// Results in the arena that lie where an operand of their kernel lies, though they are computed.
int64_t results_in_place(const Module& module) {
  int64_t count = 0;
  for (const Graph& graph : module.graphs)
    for (const Unit& unit : units_of(graph)) {
      std::set<int64_t> operands;
      const auto is_in_arena = [&](ValueId value) {
        return graph.values[value].placement && graph.values[value].placement->state.empty();
      };
      for (NodeId n : unit)
        for (ValueId operand : graph.nodes[n].operands)
          if (operand != kNone && is_in_arena(operand) &&
              std::count(unit.begin(), unit.end(), graph.values[operand].producer) == 0)
            operands.insert(graph.values[operand].placement->offset);
      for (NodeId n : unit) {
        const OpDef& op = op_of(graph.nodes[n]);
        if (op.is_view || op.moves_parts) continue;
        for (ValueId result : graph.nodes[n].results)
          count += is_in_arena(result) && operands.count(graph.values[result].placement->offset) != 0;
      }
    }
  return count;
}

// What each optimization is for, as a number of its plan: it is higher with the optimization than without,
// or, where the second is given, exactly that without.
struct Trace {
  std::function<int64_t(const Module&)> of;
  std::optional<int64_t> without;
};

const std::map<std::string, Trace>& traces() {
  static const std::map<std::string, Trace> all = {
      {"layout",
       {[](const Module& m) {
          return -count_of(m, [](const Graph&, const Node& n) { return is_op(n, "transpose"); });
        },
        std::nullopt}},
      {"merge",
       {[](const Module& m) {
          return count_of(m, [](const Graph& g, const Node& n) {
            return is_op(n, "concat") && g.name == "gradient" && g.producer(n.operands[0]).op == "read";
          });
        },
        0}},
      {"sweep",
       {[](const Module& m) {
          return -count_of(m, [](const Graph&, const Node& n) { return is_op(n, "adamw"); });
        },
        std::nullopt}},
      {"fuse",
       {[](const Module& m) {
          return count_of(m, [](const Graph&, const Node& n) { return n.group != kNone; });
        },
        0}},
      {"in_place", {results_in_place, 0}},
      {"recompute",
       {[](const Module& m) { return count_of(m, [](const Graph&, const Node& n) { return n.recomputed; }); },
        0}},
  };
  return all;
}

TEST(OptimizationsInPlans, CanBeLeftOut) {
  const ExampleModel model = small_example_models()[0];
  const Module source = model.module(Goal::kTrain, "infer");
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = model.sizes;
  const PlannedMemory all = planned_memory(run_pipeline(source, options));
  ASSERT_EQ(traces().size(), optimizations().size());
  for (const Optimization& optimization : optimizations()) {
    SCOPED_TRACE(optimization.name);
    const Trace& trace = traces().at(optimization.name);
    PlanOptions with = options;
    if (optimization.name == "recompute") with.memory_limit = all.total() - 1;
    PlanOptions left_out = options;
    left_out.disabled = {optimization.name};
    const Module plan = run_pipeline(source, with), other = run_pipeline(source, left_out);
    EXPECT_EQ(other.has_run(optimization.name), false);
    EXPECT_GT(trace.of(plan), trace.of(other));
    if (trace.without) {
      EXPECT_EQ(trace.of(other), *trace.without);
    }
  }
}

TEST(OptimizationsInPlans, AreNamedInTheError) {
  PlanOptions options = without({"fuze"});
  try {
    run_pipeline(small_example_models()[0].module(Goal::kForward, "infer"), options);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "there is no optimization \"fuze\" to disable\n"
              "  expected: one of layout, merge, sweep, fuse, in_place, recompute\n"
              "  hint: did you mean 'fuse'?");
  }
}

}  // namespace
}  // namespace kumi
