// The verifier refuses every broken invariant, with words that say which.
#include <gtest/gtest.h>

#include "graph/pipeline.h"
#include "tests/graph/small_model.h"

namespace kumi {
namespace {

struct Breakage {
  const char* message;
  void (*apply)(Module&);
};

Node& node_of(Module& module, const std::string& value) {
  Graph& graph = module.graphs[0];
  return graph.nodes[graph.values[graph.find_value(value)].producer];
}

void append_write(Module& module, const std::string& state, const std::string& value) {
  Node node;
  node.op = "write";
  node.operands = {module.graphs[0].find_value(value)};
  node.attributes = {{"state", state}};
  module.graphs[0].nodes.push_back(node);
}

TEST(Verify, AcceptsTheSmallModel) {
  Module module = testing::small_model();
  append_write(module, "embed.weight", "embed.weight");
  EXPECT_NO_THROW(verify(module));
}

TEST(Verify, RefusesBrokenInvariants) {
  const Breakage kTable[] = {
      {"used before it is defined",
       [](Module& m) { node_of(m, "h").operands[0] = m.graphs[0].find_value("loss"); }},
      {"does not exist", [](Module& m) { node_of(m, "h").operands[0] = 999; }},
      {"does not exist", [](Module& m) { node_of(m, "h").operands[0] = -7; }},
      {"no node produces the value 'h'",
       [](Module& m) { m.graphs[0].values[m.graphs[0].find_value("h")].producer = 0; }},
      {"no node produces the value 'h'",
       [](Module& m) { m.graphs[0].values[m.graphs[0].find_value("h")].producer = 999; }},
      {"two values are named 'x'",
       [](Module& m) { m.graphs[0].values[m.graphs[0].find_value("h")].name = "x"; }},
      {"expected: an identifier",
       [](Module& m) { m.graphs[0].values[m.graphs[0].find_value("h")].name = "a b"; }},
      {"is recorded as",
       [](Module& m) { m.graphs[0].values[m.graphs[0].find_value("h")].type.dtype = DType::BF16; }},
      {"is recorded as",
       [](Module& m) { m.graphs[0].values[m.graphs[0].find_value("logits")].type.shape.back() = Dim(12); }},
      {"'btch' is not declared",
       [](Module& m) {
         m.graphs[0].values[m.graphs[0].find_value("x")].type.shape[0] = Dim::symbol("btch");
       }},
      {"not complete", [](Module& m) { node_of(m, "loss").attributes.pop_back(); }},
      {"did you mean 'rms_norm'?", [](Module& m) { node_of(m, "h").op = "rms_norn"; }},
      {"there is no state \"head.weigt\"",
       [](Module& m) { node_of(m, "head.weight").attributes[0].second = std::string("head.weigt"); }},
      {"two states have one name", [](Module& m) { m.states.push_back(m.states[0]); }},
      {"not finite", [](Module& m) { m.states[0].initializer.parameter = 1.0 / 0.0; }},
      {"is read as", [](Module& m) { m.states[0].type.shape[0] = Dim(12); }},
      {"is written as", [](Module& m) { append_write(m, "embed.weight", "logits"); }},
      {"is written twice",
       [](Module& m) {
         append_write(m, "embed.weight", "embed.weight");
         append_write(m, "embed.weight", "embed.weight");
       }},
      {"has two types",
       [](Module& m) {
         Graph& graph = m.graphs[0];
         GraphBuilder(graph).call(
             "input", {}, {{"name", std::string("tokens")}, {"dtype", DType::F32}, {"shape", Shape{Dim(2)}}},
             "again");
       }},
      {"two outputs are named 'loss'",
       [](Module& m) { m.graphs[0].outputs.push_back(m.graphs[0].outputs[1]); }},
      {"which does not exist", [](Module& m) { m.graphs[0].outputs[0].value = 999; }},
      {"two graphs are named", [](Module& m) { m.graphs.push_back(m.graphs[0]); }},
      {"two sizes are named", [](Module& m) { m.sizes.push_back(m.sizes[0]); }},
      {"the size 'batch' is 0", [](Module& m) { m.sizes[0].second = Dim(0); }},
      {"not adjacent",
       [](Module& m) {
         m.graphs[0].nodes[0].group = 3;
         m.graphs[0].nodes[2].group = 3;
       }},
      {"the stream is -1", [](Module& m) { m.graphs[0].nodes[0].stream = -1; }},
      {"arena of unknown size", [](Module& m) { m.graphs[0].values[0].placement = Placement{"", 0}; }},
      {"'tokens' is placed in memory, but its size is not known: i32[batch, seq]",
       [](Module& m) {
         m.graphs[0].arena_bytes = 1024;
         m.graphs[0].values[0].placement = Placement{"", 0};
       }},
      {"'tokens' is placed in memory, but its size is not known",
       [](Module& m) { m.graphs[0].values[0].placement = Placement{"embed.weight", 0}; }},
      {"there is no state \"embed\"",
       [](Module& m) {
         const ValueId weight = m.graphs[0].find_value("embed.weight");
         m.graphs[0].values[weight].placement = Placement{"embed", 0};
       }},
      {"the size of the state \"head.weight\" is not known: f32[batch, hidden (6)]",
       [](Module& m) {
         const ValueId weight = m.graphs[0].find_value("embed.weight");
         m.states.back().type.shape[0] = Dim::symbol("batch");
         m.graphs[0].values[weight].placement = Placement{"head.weight", 0};
       }},
      {"checking the state \"head.weight\"",
       [](Module& m) {
         for (State& state : m.states) state.offset = 0;
         m.states.back().type.shape[0] = Dim::symbol("batch");
       }},
      {"some states are placed in memory, others are not", [](Module& m) { m.states[1].offset = 0; }},
      {"it is placed at the impossible byte -4",
       [](Module& m) {
         for (State& state : m.states) state.offset = -4;
       }},
      {"it is placed at the impossible byte 9223372036854775800",
       [](Module& m) {
         for (State& state : m.states) state.offset = 9223372036854775800;
       }},
      {"too many terms",
       [](Module& m) {
         Dim sum(1);
         for (int i = 0; i < 20; ++i) {
           m.sizes.emplace_back("s" + std::to_string(i), std::nullopt);
           sum = sum + Dim::symbol(m.sizes.back().first);
         }
         m.graphs[0].values[0].type.shape = Shape(10, sum);
       }},
      {"64 bits", [](Module& m) { m.states[0].type.shape = Shape(8, Dim(int64_t{1} << 32)); }},
      {"axes", [](Module& m) { m.states[0].type.shape = Shape(1000, Dim(1)); }},
  };
  for (const Breakage& breakage : kTable) {
    Module module = testing::small_model();
    breakage.apply(module);
    try {
      verify(module);
      ADD_FAILURE() << "accepted: " << breakage.message;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(breakage.message), std::string::npos)
          << "wanted: " << breakage.message << "\nfound: " << error.what();
    }
  }
}

TEST(Verify, ErrorsNameNodeAndSource) {
  Module module = testing::small_model();
  node_of(module, "h").operands[0] = module.graphs[0].find_value("logits");
  try {
    verify(module);
    ADD_FAILURE();
  } catch (const Error& error) {
    std::string message = error.what();
    EXPECT_EQ(message.find("small.kumi:5:1: "), 0u) << message;
    EXPECT_NE(message.find("h = rms_norm(...)"), std::string::npos) << message;
    EXPECT_NE(message.find("scope layers.0"), std::string::npos) << message;
    EXPECT_NE(message.find("graph 'forward'"), std::string::npos) << message;
  }
}

TEST(Verify, PlacementsStayInside) {
  PlanOptions options;
  options.sizes = {{"seq", 5}};
  Module module = run_pipeline(testing::small_model(), options);
  Graph& graph = module.graphs[0];
  for (Value& value : graph.values) {
    if (!value.placement) continue;
    Module moved = module;
    Value& target = moved.graphs[0].values[static_cast<size_t>(&value - graph.values.data())];
    for (int64_t offset : {int64_t{-64}, int64_t{1} << 62, *graph.arena_bytes + 64, int64_t{1}}) {
      target.placement->offset = offset;
      EXPECT_THROW(verify(moved), Error) << value.name << " at " << offset;
    }
  }
}

TEST(Verify, StridesStayInside) {
  PlanOptions options;
  options.sizes = {{"seq", 5}};
  Module module = run_pipeline(testing::small_model(), options);
  Graph& graph = module.graphs[0];
  const ValueId x = graph.find_value("x");  // f32[2, 5, 6]
  const auto failure = [&](int64_t offset, const std::vector<int64_t>& strides) -> std::string {
    graph.values[x].placement = Placement{"", offset, strides};
    try {
      verify(module);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  constexpr int64_t kFar = int64_t{1} << 62;
  // From the first to the last element: 1 * 60 + 4 * 10 + 5 * 2 elements further on.
  graph.arena_bytes = 64 + (60 + 40 + 10 + 1) * 4;
  EXPECT_EQ(failure(64, {60, 10, 2}), "no error");
  EXPECT_NE(failure(68, {60, 10, 2}).find("'x' is placed outside of the arena"), std::string::npos);
  EXPECT_NE(failure(64, {61, 10, 2}).find("'x' is placed outside of the arena"), std::string::npos);
  EXPECT_NE(failure(0, {10, 2}).find("'x' has 3 axes, but 2 strides"), std::string::npos);
  EXPECT_NE(failure(0, {60, -10, 2}).find("'x' has the impossible stride -10"), std::string::npos);
  EXPECT_NE(failure(0, {60, 10, kFar}).find("'x' has the impossible stride"), std::string::npos);
  EXPECT_NE(failure(0, {kFar, 10, 2}).find("'x' has the impossible stride"), std::string::npos);
}

}  // namespace
}  // namespace kumi
