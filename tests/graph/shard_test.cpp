// What ranks hold and send in each sharding mode, against formulas: P elements of padded flat buffers, R
// ranks on N nodes of L.
#include "graph/passes/shard.h"

#include <gtest/gtest.h>

#include "codegen/planned_traffic.h"
#include "graph/planned_memory.h"
#include "graph/tensor_pieces.h"
#include "tests/support/example_model.h"

namespace kumi {
namespace {

using testing::ExampleModel;
using testing::small_example_models;

PlanOptions options_of(ShardingMode mode, const Mesh& mesh) {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = small_example_models()[0].sizes;
  options.mesh = mesh;
  options.sharding = mode;
  return options;
}

Module planned(const PlanOptions& options) {
  return run_pipeline(small_example_models()[0].module(Goal::kForward, "infer"), options);
}

// Elements of all flat buffers with their padding.
int64_t padded_elements(const Module& module) {
  int64_t elements = 0;
  for (const State& state : module.states)
    if (state.kind == State::kWeight)
      elements += state.type.shape[0].number() * piece_count(state, module.mesh);
  return elements;
}

int64_t elements_of(const Module& module, State::Kind kind) {
  int64_t elements = 0;
  for (const State& state : module.states)
    if (state.kind == kind && state.type.rank() == 1) elements += state.type.shape[0].number();
  return elements;
}

int64_t bytes_of(const Module& module, const std::string& graph, CollectiveCall::Kind kind, MeshGroup group) {
  int64_t bytes = 0;
  for (const PlannedTraffic& entry : total_traffic(planned_traffic(make_plan(module))))
    if (entry.graph == graph && entry.kind == kind && entry.group == group) bytes += entry.bytes;
  return bytes;
}

constexpr auto kGather = CollectiveCall::kAllGather;
constexpr auto kScatter = CollectiveCall::kReduceScatter;
constexpr auto kSum = CollectiveCall::kAllReduce;

class ShardedOn : public ::testing::TestWithParam<std::pair<int, int>> {
 protected:
  const Mesh mesh_{GetParam().first, GetParam().second};
  const int64_t ranks_ = mesh_.ranks();
};

TEST_P(ShardedOn, Ddp) {
  const Module module = planned(options_of(ShardingMode::kDdp, mesh_));
  const int64_t all = padded_elements(module);
  EXPECT_EQ(elements_of(module, State::kWeight), all);
  EXPECT_EQ(elements_of(module, State::kOptimizer), 2 * all);
  EXPECT_EQ(elements_of(module, State::kAccumulator), all);
  EXPECT_EQ(bytes_of(module, "gradient", kSum, MeshGroup::kWorld), 2 * (ranks_ - 1) * (all / ranks_) * 4);
}

TEST_P(ShardedOn, Zero1And2) {
  for (const ShardingMode mode : {ShardingMode::kZero1, ShardingMode::kZero2})
    for (const int64_t accumulation : {1, 4}) {
      PlanOptions options = options_of(mode, mesh_);
      options.optimizer.accumulation = accumulation;
      const Module module = planned(options);
      const int64_t all = padded_elements(module), piece = all / ranks_;
      const bool keeps_all = mode == ShardingMode::kZero1 && accumulation > 1;
      EXPECT_EQ(elements_of(module, State::kReplica), all);
      EXPECT_EQ(elements_of(module, State::kWeight), piece);
      EXPECT_EQ(elements_of(module, State::kOptimizer), 2 * piece);
      EXPECT_EQ(elements_of(module, State::kAccumulator), keeps_all ? all : piece);
      EXPECT_EQ(bytes_of(module, keeps_all ? "update" : "gradient", kScatter, MeshGroup::kWorld),
                (ranks_ - 1) * piece * 4);
      EXPECT_EQ(bytes_of(module, "replicate", kGather, MeshGroup::kWorld), (ranks_ - 1) * piece * 4);
    }
}

TEST_P(ShardedOn, Zero3) {
  const Module module = planned(options_of(ShardingMode::kZero3, mesh_));
  const int64_t piece = padded_elements(module) / ranks_;
  EXPECT_EQ(elements_of(module, State::kReplica), 0);
  EXPECT_EQ(elements_of(module, State::kWeight), piece);
  EXPECT_EQ(elements_of(module, State::kAccumulator), piece);
  EXPECT_EQ(bytes_of(module, "gradient", kScatter, MeshGroup::kWorld), (ranks_ - 1) * piece * 4);
  // Every layer twice; what is used at the end of the forward and the beginning of the backward part once.
  const int64_t gathered = bytes_of(module, "gradient", kGather, MeshGroup::kWorld);
  EXPECT_GT(gathered, (ranks_ - 1) * piece * 4);
  EXPECT_LT(gathered, 2 * (ranks_ - 1) * piece * 4);
}

TEST_P(ShardedOn, Zero3InsideTheNode) {
  PlanOptions options = options_of(ShardingMode::kZero3Local, mesh_);
  options.optimizer.accumulation = 2;
  const Module module = planned(options);
  const int64_t all = padded_elements(module), piece = all / ranks_, of_node = all / mesh_.local;
  EXPECT_EQ(elements_of(module, State::kReplica), mesh_.nodes > 1 ? of_node : 0);
  EXPECT_EQ(elements_of(module, State::kWeight), piece);
  EXPECT_EQ(elements_of(module, State::kOptimizer), 2 * piece);
  EXPECT_EQ(elements_of(module, State::kAccumulator), of_node);
  EXPECT_EQ(bytes_of(module, "gradient", kScatter, MeshGroup::kNode), (mesh_.local - 1) * of_node * 4);
  // What is gathered for the two passes crosses no node; between nodes the gradients and the new weights do,
  // once.
  EXPECT_EQ(bytes_of(module, "gradient", kGather, MeshGroup::kWorld), 0);
  EXPECT_EQ(bytes_of(module, "gradient", kGather, MeshGroup::kCrossNode), 0);
  EXPECT_EQ(bytes_of(module, "update", kScatter, MeshGroup::kCrossNode), (mesh_.nodes - 1) * piece * 4);
  EXPECT_EQ(bytes_of(module, "replicate", kGather, MeshGroup::kCrossNode), (mesh_.nodes - 1) * piece * 4);
}

TEST_P(ShardedOn, WithOneMicroBatchAllGradientsAreReducedBesideTheBackwardPass) {
  for (const ShardingMode mode : {ShardingMode::kDdp, ShardingMode::kZero1, ShardingMode::kZero2,
                                  ShardingMode::kZero3, ShardingMode::kZero3Local}) {
    const Module module = planned(options_of(mode, mesh_));
    const Graph& update = *module.find_graph("update");
    for (const Node& node : update.nodes) {
      if (op_of(node).collective == nullptr) continue;
      EXPECT_EQ(element_count(update.type(node.results[0]).shape), Dim(1));  // of loss and norm
    }
    if (mode == ShardingMode::kDdp) continue;
    EXPECT_EQ(elements_of(module, State::kAccumulator), padded_elements(module) / ranks_);
  }
}

TEST_P(ShardedOn, FewBitsTakeLessMemory) {
  for (const ShardingMode mode : {ShardingMode::kZero3, ShardingMode::kZero3Local}) {
    PlanOptions options = options_of(mode, mesh_);
    const PlannedMemory plain = planned_memory(planned(options));
    for (const char* scheme : {"int8", "int4", "nf4"}) {
      options.quantized_weights = scheme;
      const Module module = planned(options);
      // Each layer's weights are there in full only where they are used.
      EXPECT_LE(planned_memory(module).activations, plain.activations) << scheme;
      const Graph& gradient = *module.find_graph("gradient");
      bool is_last_dequantize = false;
      size_t stretches = 0;
      for (const Node& node : gradient.nodes) {
        if (op_of(node).computes_nothing() || node.op == "read" || node.op == "all_gather") continue;
        const bool is_dequantize = node.op == "dequantize";
        stretches += is_dequantize && !is_last_dequantize;
        is_last_dequantize = is_dequantize;
      }
      EXPECT_GT(stretches, 3) << scheme;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Meshes, ShardedOn,
                         ::testing::Values(std::pair(1, 2), std::pair(2, 2), std::pair(4, 2),
                                           std::pair(2, 3)),
                         [](const auto& info) {
                           return std::to_string(info.param.first) + "x" + std::to_string(info.param.second);
                         });

TEST(Shard, PiecesOfAllRanksMakeUpEveryTensorOnce) {
  for (const ShardingMode mode : {ShardingMode::kZero1, ShardingMode::kZero3, ShardingMode::kZero3Local}) {
    const Module module = planned(options_of(mode, {2, 3}));
    std::map<std::string, int64_t> held;
    for (const State& state : module.states)
      for (int64_t rank = 0; rank < 6 && state.kind == State::kWeight; ++rank)
        for (const TensorPiece& piece : tensor_pieces(state, module.mesh, rank))
          held[piece.tensor] += piece.count;
    for (const TensorOfState& tensor : tensors_of(module.states, State::kWeight))
      EXPECT_EQ(held[tensor.name], element_count(tensor.shape).number()) << tensor.name;
  }
}

TEST(Shard, OneRankIsAsItWas) {
  const Module alone = planned(options_of(ShardingMode::kZero3, {1, 1}));
  for (const State& state : alone.states)
    EXPECT_TRUE(state.tensors.empty() && state.cut.empty()) << state.name;
}

TEST(QuantizeComm, FourBitsTakeAQuarterOfBf16) {
  PlanOptions options = options_of(ShardingMode::kZero3Local, {2, 2});
  options.precision = Precision::kBF16;
  const auto gathered = [&](const std::string& scheme) {
    options.quantized_weights = scheme;
    // Matrices that are large beside the vectors and the blocks of scales.
    ExampleModel model = small_example_models()[0];
    model.settings = {{"hidden", "512"}, {"heads", "8"},  {"kv_heads", "2"},
                      {"ffn", "1024"},   {"layers", "2"}, {"vocab", "512"}};
    const Module module = run_pipeline(model.module(Goal::kForward, "infer"), options);
    return static_cast<double>(bytes_of(module, "gradient", kGather, MeshGroup::kNode));
  };
  const double plain = gathered("none");
  EXPECT_LE(gathered("nf4") / plain, 0.26);
  EXPECT_LE(gathered("int4") / plain, 0.26);
  EXPECT_LE(gathered("int8") / plain, 0.51);
}

TEST(QuantizeComm, DdpGathersNoWeights) {
  PlanOptions options = options_of(ShardingMode::kDdp, {1, 2});
  options.quantized_weights = "nf4";
  EXPECT_THROW((void)planned(options), Error);
}

}  // namespace
}  // namespace kumi
