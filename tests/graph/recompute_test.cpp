// Recomputation under a memory limit: what is planned. That results do not change by a bit is in
// tests/ops/recomputed_bits_test.cpp.
#include "graph/passes/recompute.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "frontend/language/parse.h"
#include "frontend/language/print.h"
#include "graph/memory_report.h"
#include "graph/op.h"
#include "graph/passes/memory.h"
#include "graph/planned_memory.h"
#include "graph/recomputation.h"
#include "graph/rewrite.h"
#include "graph/serialize.h"
#include "runtime/initialize.h"
#include "tests/graph/evaluate.h"
#include "tests/ops/random_graph.h"
#include "tests/support/example_model.h"

namespace kumi {
namespace {

using testing::describe;
using testing::evaluate;
using testing::ExampleModel;
using testing::random_graph;
using testing::RandomGraph;
using testing::small_example_models;
using testing::Tensors;

// Large enough that its activations outweigh what the loss needs.
ExampleModel deep_model(int hidden = 32) {
  return {"plamo.kumi",
          {{"vocab", "64"},
           {"hidden", std::to_string(hidden)},
           {"layers", "6"},
           {"heads", "4"},
           {"kv_heads", "2"},
           {"ffn", std::to_string(3 * hidden)}},
          {{"batch", 2}, {"seq", 64}}};
}

PlanOptions train_options(const ExampleModel& model, int64_t limit = 0, int64_t accumulation = 1) {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = model.sizes;
  options.memory_limit = limit;
  options.optimizer.accumulation = accumulation;
  return options;
}

Module source(const ExampleModel& model) {
  return model.module(Goal::kTrain, "infer");
}

Module planned(const ExampleModel& model, int64_t limit = 0, int64_t accumulation = 1) {
  return run_pipeline(source(model), train_options(model, limit, accumulation));
}

int64_t recomputed_count(const Graph& graph) {
  return std::count_if(graph.nodes.begin(), graph.nodes.end(), [](const Node& n) { return n.recomputed; });
}

std::string failure(const Module& module, const PlanOptions& options) {
  try {
    run_pipeline(module, options);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// The least memory that a plan can do with, as the message says when the limit is lower.
int64_t least_of(const ExampleModel& model, int64_t accumulation = 1) {
  const PlannedMemory all = planned_memory(planned(model, 0, accumulation));
  const std::string message = failure(source(model), train_options(model, all.states + 1000, accumulation));
  EXPECT_NE(message.find("the plan needs at least "), std::string::npos) << message;
  const size_t begin = message.find('(') + 1;
  std::string digits = message.substr(begin, message.find(" bytes)") - begin);
  std::erase(digits, ',');
  return std::stoll(digits);
}

// The limit between the least and all that a plan takes: 0 for the least.
int64_t limit_of(const ExampleModel& model, double share, int64_t accumulation = 1) {
  const int64_t all = planned_memory(planned(model, 0, accumulation)).total();
  const int64_t least = least_of(model, accumulation);
  return least + static_cast<int64_t>(share * static_cast<double>(all - least));
}

TEST(Recompute, ChangesNothingWithoutNeed) {
  const ExampleModel model = deep_model();
  const Module before = run_pipeline(source(model), train_options(model), "chunk_loss");
  const PlannedMemory memory = planned_memory(planned(model));
  EXPECT_TRUE(recompute(before, train_options(model)) == before);
  EXPECT_TRUE(recompute(before, train_options(model, memory.total())) == before);
  EXPECT_FALSE(recompute(before, train_options(model, memory.total() - 1)) == before);
}

TEST(Recompute, FitsIntoTheLimit) {
  const ExampleModel model = deep_model();
  for (int64_t accumulation : {1, 3}) {
    int64_t fewer = 0;
    for (double share : {0.95, 0.7, 0.5, 0.2, 0.0}) {
      SCOPED_TRACE(::testing::Message() << "share " << share << ", accumulation " << accumulation);
      const int64_t limit = limit_of(model, share, accumulation);
      const Module module = planned(model, limit, accumulation);
      EXPECT_LE(planned_memory(module).total(), limit);
      const int64_t count = recomputed_count(*module.find_graph("gradient"));
      EXPECT_GT(count, fewer) << "a lower limit takes more";
      fewer = count;
      EXPECT_EQ(recomputed_count(*module.find_graph("update")), 0);
    }
  }
}

// What is cheap and large goes first: no matrix product is computed again while element-wise results and
// norms would do.
TEST(Recompute, BeginsWithWhatCostsLeast) {
  // Wide enough that a product is dear for the bytes that it gives.
  const ExampleModel model = deep_model(256);
  const Module before = run_pipeline(source(model), train_options(model), "chunk_loss");
  const SplitGraph split = split_at_backward(before, *before.find_graph("gradient"));
  const Module all = planned(model);
  std::vector<Drop> cheap = order_of_dropping(split, *all.find_graph("gradient"));
  std::erase_if(cheap, [&](const Drop& drop) { return op_of(split.graph->nodes[drop.node]).is_product; });
  Module without = before;
  *without.find_graph("gradient") = with_recomputation(split, cheap, cheap.size());
  without.passes.push_back("recompute");
  const PlannedMemory would_do = planned_memory(run_pipeline(std::move(without), train_options(model)));
  EXPECT_LT(would_do.total(), planned_memory(all).total());
  const auto recomputed_products = [&](int64_t limit) {
    const Module module = planned(model, limit);
    const Graph& gradient = *module.find_graph("gradient");
    EXPECT_GT(recomputed_count(gradient), 0);
    return std::count_if(gradient.nodes.begin(), gradient.nodes.end(),
                         [](const Node& node) { return node.recomputed && op_of(node).is_product; });
  };
  EXPECT_EQ(recomputed_products(would_do.total()), 0);
  EXPECT_GT(recomputed_products(would_do.total() - 1), 0);
}

TEST(Recompute, CopiesStandWhereTheyAreNeeded) {
  const ExampleModel model = deep_model();
  const Module module = planned(model, limit_of(model, 0.1));
  const Graph& graph = *module.find_graph("gradient");
  // The loss and its gradient stand between an original and its copy, also after fusion and scheduling.
  const NodeId loss = graph.values[graph.find_value("loss")].producer;
  std::map<int32_t, bool> has_forward;  // by group
  for (size_t n = 0; n < graph.nodes.size(); ++n) {
    const Node& node = graph.nodes[n];
    if (node.group != kNone && static_cast<NodeId>(n) < loss) has_forward[node.group] = true;
    if (!node.recomputed) continue;
    EXPECT_GT(static_cast<NodeId>(n), loss);
    EXPECT_FALSE(has_forward[node.group] && node.group != kNone);
  }
}

TEST(Recompute, CopiesAreLikeTheirOriginals) {
  const ExampleModel model = deep_model();
  const Module module = run_pipeline(source(model), train_options(model, limit_of(model, 0.1)), "recompute");
  const Graph& graph = *module.find_graph("gradient");
  EXPECT_GT(recomputed_count(graph), 0);
  for (const Node& node : graph.nodes) {
    if (!node.recomputed) continue;
    for (ValueId result : node.results) {
      const std::string& name = graph.values[result].name;
      ASSERT_TRUE(name.ends_with(".recomputed")) << name;
      const ValueId original =
          graph.find_value(name.substr(0, name.size() - std::string(".recomputed").size()));
      ASSERT_NE(original, kNone) << name;
      const Node& of = graph.producer(original);
      EXPECT_FALSE(of.recomputed);
      EXPECT_EQ(of.op, node.op);
      EXPECT_EQ(of.attributes, node.attributes);
      EXPECT_EQ(of.scope, node.scope);
      EXPECT_EQ(of.location, node.location);
    }
  }
}

// Every copy is used, directly or by other copies, by a node right after them that is none.
TEST(Recompute, CopiesAreMadeRightBeforeTheirFirstUse) {
  const ExampleModel model = deep_model();
  PlanOptions options = train_options(model, limit_of(model, 0.1));
  const Module module = run_pipeline(source(model), options, "recompute");
  const Graph& graph = *module.find_graph("gradient");
  for (size_t n = 0; n < graph.nodes.size(); ++n) {
    if (!graph.nodes[n].recomputed) continue;
    size_t user = n + 1;
    while (user < graph.nodes.size() && graph.nodes[user].recomputed) ++user;
    ASSERT_LT(user, graph.nodes.size());
    bool is_used = false;
    for (size_t m = n + 1; m <= user; ++m)
      for (ValueId operand : graph.nodes[m].operands)
        is_used = is_used || (operand != kNone && graph.values[operand].producer == static_cast<NodeId>(n));
    EXPECT_TRUE(is_used) << graph.values[graph.nodes[n].results[0]].name;
  }
}

TEST(Recompute, CopiesAreNotMergedWithTheirOriginals) {
  const ExampleModel model = deep_model();
  PlanOptions options = train_options(model, limit_of(model, 0.4));
  const Module module = run_pipeline(source(model), options, "recompute");
  const Graph& graph = *module.find_graph("gradient");
  EXPECT_EQ(merge_equal_nodes(graph).nodes.size(), graph.nodes.size());
  Graph unmarked = graph;
  for (Node& node : unmarked.nodes) node.recomputed = false;
  EXPECT_LT(merge_equal_nodes(unmarked).nodes.size(), graph.nodes.size());
}

TEST(Recompute, ReadsBackInEveryForm) {
  const ExampleModel model = deep_model();
  PlanOptions options = train_options(model, limit_of(model, 0.4));
  for (const char* pass : {"recompute", "memory"}) {
    const Module module = run_pipeline(source(model), options, pass);
    ASSERT_GT(recomputed_count(*module.find_graph("gradient")), 0);
    EXPECT_TRUE(parse_module(print_module(module), "dump.kumi") == module) << pass;
    EXPECT_TRUE(from_binary(to_binary(module), "dump.pb") == module) << pass;
    EXPECT_TRUE(from_text_format(to_text_format(module), "dump.txtpb") == module) << pass;
  }
}

TEST(Recompute, GradientsAloneAreLimitedToo) {
  const ExampleModel model = deep_model();
  PlanOptions options = train_options(model);
  options.goal = Goal::kGradient;
  const PlannedMemory all = planned_memory(run_pipeline(source(model), options));
  options.memory_limit = all.states + all.activations * 9 / 10;
  const Module module = run_pipeline(source(model), options);
  EXPECT_LE(planned_memory(module).total(), options.memory_limit);
  EXPECT_GT(recomputed_count(*module.find_graph("gradient")), 0);
}

TEST(Recompute, LeftOutTheLimitIsAnError) {
  const ExampleModel model = deep_model();
  PlanOptions options = train_options(model, planned_memory(planned(model)).total() - 1);
  EXPECT_EQ(failure(source(model), options), "no error");
  options.disabled = {"recompute"};
  const std::string message = failure(source(model), options);
  EXPECT_NE(message.find("the plan needs "), std::string::npos) << message;
  EXPECT_NE(message.find("the memory limit"), std::string::npos) << message;
  options.memory_limit += 1;
  EXPECT_EQ(failure(source(model), options), "no error");
}

TEST(Recompute, SaysTheLeastThatIsPossible) {
  const ExampleModel model = deep_model();
  const PlannedMemory all = planned_memory(planned(model));
  const std::string message = failure(source(model), train_options(model, all.states + 1000));
  EXPECT_NE(message.find("everything computed again that can be"), std::string::npos) << message;
  EXPECT_NE(message.find("raise memory_limit, or make the batch or the sequence smaller"), std::string::npos);
  // The number that it names is enough.
  const int64_t least = least_of(model);
  EXPECT_LT(least, all.total());
  EXPECT_LE(planned_memory(planned(model, least)).total(), least);
  EXPECT_NE(failure(source(model), train_options(model, 1000)).find("the states alone do not fit"),
            std::string::npos);
}

// A model that only runs forward has nothing to compute again, but a limit holds there too.
TEST(Recompute, LimitsWhatIsNotTrained) {
  const ExampleModel model = deep_model();
  PlanOptions options = train_options(model);
  options.goal = Goal::kForward;
  const int64_t needed = planned_memory(run_pipeline(source(model), options)).total();
  options.memory_limit = needed;
  EXPECT_EQ(failure(source(model), options), "no error");
  options.memory_limit = needed - 1;
  EXPECT_NE(failure(source(model), options).find("the plan needs "), std::string::npos);
}

// Which values are dropped is left to chance here, not to what is worth it, in graphs of all kinds of
// ops. Node by node in double precision the results are equal, also in the order that is planned.
TEST(Recompute, KeepsTheMeaningOfRandomGraphs) {
  int64_t recomputed = 0;
  for (uint32_t seed = 2000; seed < 2100; ++seed) {
    const RandomGraph random = random_graph(seed, true, "");
    PlanOptions options;
    options.goal = Goal::kGradient;
    Module module = run_pipeline(random.module, options, "autodiff");
    const Graph gradient = *module.find_graph("gradient");
    const SplitGraph split = split_at_backward(module, gradient);
    Tensors states = random.states;
    const Tensors kept = evaluate(gradient, random.feeds, &states);
    for (double probability : {0.3, 0.7, 1.0}) {
      std::vector<Drop> drops;
      for (NodeId n = 0; n <= split.last_forward; ++n) {
        const Node& node = gradient.nodes[n];
        const bool can_be = !node.operands.empty() && !op_of(node).is_view && !op_of(node).is_state_access;
        if (can_be && uniform01(seed, static_cast<uint64_t>(n)) < probability) drops.push_back({n, 0});
      }
      Module dropped = module;
      *dropped.find_graph("gradient") = with_recomputation(split, drops, drops.size());
      dropped = run_pipeline(std::move(dropped), options);
      const Graph& graph = *dropped.find_graph("gradient");
      recomputed += recomputed_count(graph);
      const Tensors found = evaluate(graph, random.feeds, &states);
      for (const auto& [name, tensor] : kept)
        EXPECT_EQ(found.at(name).data, tensor.data) << name << ", seed " << seed << "\n" << describe(graph);
    }
  }
  EXPECT_GT(recomputed, 200);
}

TEST(MemoryReport, AddsUp) {
  for (const ExampleModel& model : small_example_models()) {
    const Module module = planned(model);
    const MemoryReport report = report_memory(module);
    const int64_t states = report.weights + report.optimizer + report.accumulators;
    EXPECT_LE(states, report.memory.states) << model.file;
    EXPECT_LT(report.memory.states - states, kBufferAlignment * static_cast<int64_t>(module.states.size()));
    int64_t live = 0;
    for (const LiveBuffers& group : report.at_peak) live += group.bytes;
    EXPECT_EQ(live, report.lower_bound) << model.file;
    EXPECT_LE(report.lower_bound, report.memory.activations) << model.file;
    EXPECT_EQ(report.recomputed_nodes, 0) << model.file;
  }
}

TEST(MemoryReport, TellsWhatRecomputationSaves) {
  const ExampleModel model = deep_model();
  const MemoryReport without = report_memory(planned(model));
  const int64_t limit = limit_of(model, 0.1);
  const MemoryReport report = report_memory(planned(model, limit));
  EXPECT_GT(report.recomputed_nodes, 0);
  EXPECT_GT(report.flops, without.flops);
  EXPECT_LE(report.memory.total(), limit);
  const std::string text = to_string(report, &without);
  EXPECT_NE(text.find(" more FLOPs, saving "), std::string::npos) << text;
  EXPECT_EQ(to_string(without).find("recomputed"), std::string::npos);
}

// Fusion copies cheap nodes of its own; without it the rest is the graph as it is with everything kept.
TEST(MemoryReport, CountsTheWorkOfRecomputation) {
  const ExampleModel model = deep_model();
  PlanOptions options = train_options(model);
  options.disabled = {"fuse"};
  const MemoryReport without = report_memory(run_pipeline(source(model), options));
  options.memory_limit = without.memory.states + without.memory.activations / 2;
  const MemoryReport report = report_memory(run_pipeline(source(model), options));
  EXPECT_GT(report.recomputed_nodes, 0);
  EXPECT_GT(report.recomputed_flops, 0);
  EXPECT_NEAR(report.flops - report.recomputed_flops, without.flops, 1e-6 * without.flops);
}

}  // namespace
}  // namespace kumi
