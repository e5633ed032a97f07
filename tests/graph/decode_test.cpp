// Keys and values kept between tokens: what the pass makes of a model, what it refuses, and that the cache is
// changed in place.
#include <gtest/gtest.h>

#include <algorithm>

#include "codegen/plan.h"
#include "frontend/language/parse.h"
#include "frontend/language/print.h"
#include "graph/pipeline.h"
#include "graph/serialize.h"
#include "ops/all_ops.h"
#include "tests/ops/device_run.h"
#include "tests/support/example_model.h"

namespace kumi {
namespace {

using testing::DeviceRun;

PlanOptions decode_options(int64_t seq, int64_t chunk) {
  PlanOptions options;
  options.goal = Goal::kDecode;
  options.sizes = {{"batch", 1}, {"seq", seq}};
  options.prefill_chunk = chunk;
  return options;
}

// A model of tokens and a table of weights, whose body makes `logits`.
Module model_of(const std::string& body) {
  register_all_ops();
  return parse_module(concat(R"(model m(vocab = 11, hidden = 8, heads = 2, context = 32) {
  size batch = 1, seq = 16
  input tokens: i32[batch, seq]
  table = weight("table", [vocab, hidden], init = zeros)
  positions = weight("positions", [context, hidden], init = zeros)
  x = embedding(tokens, table)
  fn attend(x, causal = true) =
    merge_heads(attention(split_heads(x, heads), split_heads(x, heads), split_heads(x, heads), causal = causal))
)",
                             body, "\n}\n"),
                      "m.kumi");
}

Module decode_of(const std::string& body, const std::string& last = "decode") {
  return run_pipeline(model_of(body), decode_options(16, 4), last);
}

std::string refusal(const std::string& body) {
  try {
    decode_of(body);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

int count(const Graph& graph, const std::string& op) {
  return static_cast<int>(
      std::count_if(graph.nodes.begin(), graph.nodes.end(), [&](const Node& node) { return node.op == op; }));
}

Type type_of(const Graph& graph, const std::string& value) {
  const ValueId id = graph.find_value(value);
  return id == kNone ? Type{DType::BOOL, {}} : graph.type(id);
}

TEST(Decode, GivesTwoGraphsOverOneCache) {
  for (const testing::ExampleModel& example : testing::small_example_models()) {
    if (example.file == "mlp.kumi") continue;
    SCOPED_TRACE(example.file);
    const Module source = example.module(Goal::kForward, "infer");
    PlanOptions options = decode_options(7, 5);
    options.sizes = example.sizes;
    const Module module = run_pipeline(source, options, "decode");
    ASSERT_EQ(module.graphs.size(), 2u);
    EXPECT_EQ(module.graphs[0].name, "prefill");
    EXPECT_EQ(module.graphs[1].name, "decode");
    EXPECT_EQ(parameter_count(module), parameter_count(source));
    // Two layers with keys and values each.
    EXPECT_EQ(std::count_if(module.states.begin(), module.states.end(),
                            [](const State& state) { return state.kind == State::kCache; }),
              4);
    for (const Graph& graph : module.graphs) {
      EXPECT_EQ(count(graph, "attention"), 0);
      EXPECT_EQ(count(graph, "attention_cached"), 2);
      EXPECT_EQ(count(graph, "cache_update"), 4);
      EXPECT_EQ(count(graph, "write"), 4);
      EXPECT_EQ(count(graph, "cross_entropy"), 0);
      for (const Node& node : graph.nodes)
        if (node.op == "rope") {
          EXPECT_EQ(node.operands.at(1), graph.find_value("position"));
        }
      EXPECT_EQ(graph.type(graph.find_output("logits")), (Type{DType::F32, {2, 1, 97}}));
    }
    EXPECT_EQ(numbers(module.graphs[0].type(module.graphs[0].find_value("tokens")).shape),
              (std::vector<int64_t>{2, 5}));
    EXPECT_EQ(numbers(module.graphs[1].type(module.graphs[1].find_value("tokens")).shape),
              (std::vector<int64_t>{2, 1}));
  }
}

TEST(Decode, OnlyTheLastTokenGoesOnBehindTheLastAttention) {
  const Module module = decode_of(
      "h = silu(x)\n y = exp(x + attend(h))\n output logits = matmul(y, table, transpose_b = true)");
  const Graph& prefill = *module.find_graph("prefill");
  EXPECT_EQ(type_of(prefill, "h"), (Type{DType::F32, {1, 4, 8}}));
  EXPECT_EQ(type_of(prefill, "y"), (Type{DType::F32, {1, 1, 8}}));
  // Of x and of attention's result.
  EXPECT_EQ(count(prefill, "dynamic_slice"), 2);
  EXPECT_EQ(count(*module.find_graph("decode"), "dynamic_slice"), 0);
}

TEST(Decode, ALongChunkIsTheWholeText) {
  const Module module = run_pipeline(model_of("output logits = attend(x)"), decode_options(3, 64), "decode");
  EXPECT_EQ(type_of(*module.find_graph("prefill"), "tokens"), (Type{DType::I32, {1, 3}}));
}

TEST(Decode, TheCacheIsChangedInPlace) {
  for (const testing::ExampleModel& example : testing::small_example_models()) {
    if (example.file == "mlp.kumi") continue;
    SCOPED_TRACE(example.file);
    PlanOptions options = decode_options(7, 5);
    options.sizes = example.sizes;
    const Plan plan = make_plan(run_pipeline(example.module(Goal::kForward, "infer"), options));
    for (const Graph& graph : plan.module.graphs)
      for (const Node& node : graph.nodes) {
        if (node.op != "cache_update") continue;
        const std::optional<Placement>& before = graph.values[node.operands[0]].placement;
        ASSERT_TRUE(before.has_value());
        EXPECT_FALSE(before->state.empty());
        EXPECT_EQ(graph.values[node.results[0]].placement, before);
      }
    for (const GraphPlan& graph : plan.graphs)
      for (const Step& step : graph.steps) EXPECT_NE(step.name, "copy");
  }
}

TEST(Decode, EveryStageReadsBackAsItself) {
  const char* body = "output logits = attend(x + slice(positions, axis = 0, begin = 0, end = seq))";
  for (const char* pass : {"decode", "fuse", "schedule", "memory"}) {
    SCOPED_TRACE(pass);
    const Module module = decode_of(body, pass);
    EXPECT_EQ(parse_module(print_module(module), "m.kumi"), module);
    EXPECT_EQ(from_binary(to_binary(module), "m.pb"), module);
    EXPECT_EQ(from_text_format(to_text_format(module), "m.txtpb"), module);
    EXPECT_EQ(run_pipeline(module, decode_options(16, 4)), decode_of(body, ""));
  }
}

// ---- Learned positions.

TEST(Decode, RowsOfATableOfPositionsArePicked) {
  const Module module =
      decode_of("output logits = attend(x + slice(positions, axis = 0, begin = 0, end = seq))");
  for (const Graph& graph : module.graphs) {
    EXPECT_EQ(count(graph, "slice"), 0);
    ASSERT_GE(count(graph, "dynamic_slice"), 1);
    const auto pick = std::find_if(graph.nodes.begin(), graph.nodes.end(),
                                   [](const Node& node) { return node.op == "dynamic_slice"; });
    EXPECT_EQ(pick->operands,
              (std::vector<ValueId>{graph.find_value("positions"), graph.find_value("position")}));
  }
}

TEST(Decode, AnyTableThatIsMadeForEveryPositionWillDo) {
  const char* tables[] = {
      "slice(positions, axis = 0, begin = 3, end = seq + 3)",
      "exp(slice(positions, axis = 0, begin = 0, end = seq))",
      "reshape(slice(positions, axis = 0, begin = 0, end = seq), [1, seq, hidden])",
      "sum(slice(positions, axis = 0, begin = 0, end = seq), axes = [1], keep_axes = true)",
  };
  for (const char* table : tables) {
    SCOPED_TRACE(table);
    Module module = decode_of(concat("output logits = attend(x * ", table, ")"));
    EXPECT_EQ(count(*module.find_graph("decode"), "dynamic_slice"), 1);
  }
}

// ---- What it refuses.

TEST(Decode, RefusesWhatMixesPositions) {
  struct Line {
    const char* body;
    const char* message;
  };
  const Line kTable[] = {
      {"output logits = attend(x, causal = false)", "attention 'attention': it is not causal"},
      {"h = split_heads(x, heads)\n y = softmax(matmul(h, h, transpose_b = true))\n output logits = "
       "merge_heads(matmul(y, h))",
       "matmul 'matmul': it multiplies tokens at different positions"},
      {"h = split_heads(x, heads)\n y = matmul(h, h, transpose_a = true)\n output logits = attend(x) * "
       "sum(y)",
       "matmul 'y': it sums over the positions"},
      {"output logits = attend(x) + mean(x, axes = [1], keep_axes = true)", "it is not known whether"},
      {"output logits = attend(x) + transpose(softmax(transpose(x, [0, 2, 1])), [0, 2, 1])",
       "softmax 'softmax': it reduces over the positions"},
      {"y = slice(x, axis = 1, begin = 0, end = 1)\n output logits = attend(x) + y",
       "slice 'y': it picks positions"},
      {"y = concat(slice(x, axis = 1, begin = 1, end = seq), slice(x, axis = 1, begin = 0, end = 1), axis = "
       "1)\n"
       " output logits = attend(y)",
       "it picks positions"},
      {"y = concat(x, x, axis = 1)\n output logits = attend(y)", "concat 'y': it joins the positions"},
      {"y = pad(x, axis = 1, before = 1)\n output logits = attend(y)", "pad 'y': it moves the positions"},
      {"y = reshape(x, [batch, seq * hidden])\n output logits = attend(x) * sum(y)",
       "reshape 'y': it joins the positions"},
      {"y = transpose(embedding(tokens, weight(\"square\", [vocab, seq], init = zeros)), [0, 2, 1])\n"
       " output logits = attend(x) + sum(y, axes = [2], keep_axes = true)",
       "it reduces over the positions"},
      {"y = embedding(tokens, weight(\"square\", [vocab, seq], init = zeros))\n output logits = attend(x) + "
       "sum(y + transpose(y, [0, 2, 1]), axes = [2], keep_axes = true)",
       "add 'add': it pairs tokens at different positions"},
      {"output logits = x", "there is no attention"},
      {"output logits = positions", "do not depend on"},
  };
  for (const Line& line : kTable) {
    SCOPED_TRACE(line.body);
    const std::string message = refusal(line.body);
    EXPECT_NE(message.find(line.message), std::string::npos) << message;
  }
  const std::string message = refusal("y = pad(x, axis = 1, before = 1)\n output logits = attend(y)");
  EXPECT_NE(message.find("m.kumi:9:"), std::string::npos) << message;
}

TEST(Decode, RefusesChunksOfNothing) {
  EXPECT_THROW(run_pipeline(model_of("output logits = attend(x)"), decode_options(16, 0), "decode"), Error);
}

TEST(Decode, IsOneOfTheGoals) {
  PlanOptions options = decode_options(16, 4);
  const Module decode = run_pipeline(model_of("output logits = attend(x)"), options, "decode");
  for (Goal other : {Goal::kForward, Goal::kGradient, Goal::kTrain}) {
    options.goal = other;
    EXPECT_THROW(run_pipeline(decode, options), Error);
    // Other goals keep the graph as it is.
    if (other == Goal::kForward) {
      EXPECT_NE(run_pipeline(model_of("output logits = attend(x)"), options).find_graph("forward"), nullptr);
    }
  }
}

// ---- In place, or from a copy.

class InPlace : public ::testing::Test {
 protected:
  void SetUp() override {
    register_all_ops();
    module_.name = "cache";
    module_.states.push_back({"kept", State::kCache, type_, {}, {}});
    graph_.name = "forward";
    piece_ = builder_.call(
        "input", {},
        {{"name", std::string("piece")}, {"dtype", DType::F32}, {"shape", Shape{Dim(1), Dim(2)}}});
    position_ = builder_.call("input", {},
                              {{"name", std::string("position")}, {"dtype", DType::I32}, {"shape", Shape{}}});
    old_ = builder_.call("read", {},
                         {{"state", std::string("kept")}, {"dtype", type_.dtype}, {"shape", type_.shape}});
  }

  ValueId update(ValueId cache) { return builder_.call("cache_update", {cache, piece_, position_}); }

  // The state after {7, 8} has come to position 1 of {1, 2, ..., 6}.
  std::vector<double> run() {
    module_.graphs.push_back(std::move(graph_));
    run_.emplace(std::move(module_));
    run_->write_state("kept", {DType::F32, {3, 2}, {1, 2, 3, 4, 5, 6}});
    outputs_ =
        run_->run("forward", {{"piece", {DType::F32, {1, 2}, {7, 8}}}, {"position", {DType::I32, {}, {1}}}});
    return run_->read_state("kept").data;
  }

  int copies() const {
    const std::vector<Step>& steps = run_->plan().graphs[0].steps;
    return static_cast<int>(
        std::count_if(steps.begin(), steps.end(), [](const Step& step) { return step.name == "copy"; }));
  }

  const Type type_{DType::F32, {Dim(3), Dim(2)}};
  Module module_;
  Graph graph_;
  GraphBuilder builder_{graph_};
  ValueId piece_ = kNone, position_ = kNone, old_ = kNone;
  std::optional<DeviceRun> run_;
  testing::Tensors outputs_;
};

const std::vector<double> kUpdated = {1, 2, 7, 8, 5, 6};

TEST_F(InPlace, AStateIsChangedWhereItIs) {
  const ValueId updated = update(old_);
  builder_.build("write", {updated}, {{"state", std::string("kept")}});
  graph_.outputs = {{"twice", builder_.multiply(updated, 2.0)}};
  EXPECT_EQ(run(), kUpdated);
  EXPECT_EQ(outputs_.at("twice").data, (std::vector<double>{2, 4, 14, 16, 10, 12}));
  EXPECT_EQ(copies(), 0);
}

TEST_F(InPlace, AStateWhoseOldValueIsReadLaterIsCopied) {
  const ValueId updated = update(old_);
  builder_.build("write", {updated}, {{"state", std::string("kept")}});
  graph_.outputs = {{"change", builder_.subtract(updated, old_)}};
  EXPECT_EQ(run(), kUpdated);
  EXPECT_EQ(outputs_.at("change").data, (std::vector<double>{0, 0, 4, 4, 0, 0}));
  EXPECT_GE(copies(), 1);
}

TEST_F(InPlace, AValueThatIsNotWrittenIsACopy) {
  graph_.outputs = {{"updated", update(old_)}};
  EXPECT_EQ(run(), (std::vector<double>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(outputs_.at("updated").data, kUpdated);
  EXPECT_EQ(copies(), 1);
}

TEST_F(InPlace, AnotherValueWrittenToTheStateIsACopy) {
  builder_.build("write", {update(builder_.multiply(old_, 10.0))}, {{"state", std::string("kept")}});
  EXPECT_EQ(run(), (std::vector<double>{10, 20, 7, 8, 50, 60}));
  EXPECT_EQ(copies(), 1);
}

TEST_F(InPlace, OnlyWhatIsWrittenCounts) {
  EXPECT_EQ(cost_of(graph_, graph_.producer(update(old_))).bytes, 2 * (8 + 4));
}

TEST_F(InPlace, APositionBeyondTheEndIsRefused) {
  builder_.build("write", {update(old_)}, {{"state", std::string("kept")}});
  run();
  for (double position : {-1.0, 3.0})
    EXPECT_THROW(run_->run("forward", {{"piece", {DType::F32, {1, 2}, {7, 8}}},
                                       {"position", {DType::I32, {}, {position}}}}),
                 Error);
}

}  // namespace
}  // namespace kumi
