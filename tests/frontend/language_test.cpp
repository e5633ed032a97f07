// The language: what sources mean, what they may not say, and that nothing is lost in print and parse.
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <sstream>

#include "frontend/language/parse.h"
#include "frontend/language/print.h"
#include "graph/pipeline.h"
#include "graph/serialize.h"
#include "ops/all_ops.h"
#include "tests/graph/small_model.h"

namespace kumi {
namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

Module parse(const std::string& text, const Settings& settings = {}) {
  register_all_ops();
  return parse_module(text, "m.kumi", settings);
}

// The body in a model with some inputs.
Module parse_body(const std::string& body) {
  return parse(
      "model m(hidden = 6, heads = 2, flag = true) {\n  size batch = 2\n  input x: f32[batch, hidden]\n" +
      body + "\n}\n");
}

std::string message_of(const std::string& text, const Settings& settings = {}) {
  try {
    parse(text, settings);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string body_message(const std::string& body) {
  try {
    parse_body(body);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string output_type(const Module& module, const std::string& name = "y") {
  const Graph& graph = module.graphs.at(0);
  return to_string(graph.type(graph.find_output(name)));
}

std::vector<std::string> ops_of(const Module& module) {
  std::vector<std::string> ops;
  for (const Node& node : module.graphs.at(0).nodes) ops.push_back(node.op);
  return ops;
}

// Names of sizes take no part in ==, so the printed forms are compared as well.
void expect_round_trip(const Module& module) {
  const std::string text = print_module(module);
  Module back;
  try {
    back = parse_module(text, "dump.kumi");
  } catch (const Error& error) {
    FAIL() << error.what() << "\nin\n" << text;
  }
  EXPECT_TRUE(back == module);
  EXPECT_EQ(print_module(back), text);
  EXPECT_EQ(to_binary(back), to_binary(module));
}

TEST(Language, SizesAreCheckedAndNamedSymbolically) {
  EXPECT_EQ(output_type(parse_body("output y = reshape(x, [batch, heads, hidden / heads])")),
            "f32[batch, heads=2, hidden/heads=3]");
  EXPECT_EQ(output_type(parse_body(
                "let d = 2 * hidden\noutput y = broadcast(sum(x, axes = [0, 1]), [batch * 2, d])")),
            "f32[2*batch, d=12]");
  EXPECT_EQ(output_type(parse_body("output y = reshape(x, [dim(x, 1), dim(x, -2)])")),
            "f32[hidden=6, batch]");
  EXPECT_EQ(output_type(parse_body("output y = reshape(x, shape(x) + [1])")), "f32[batch, hidden=6, 1]");
}

TEST(Language, LetsAndParametersHoldInAnyOrder) {
  Module module = parse(
      "model m(b = 2 * a, a = 3) {\n  let d = c + 1\n  let c = a * b\n  input x: f32[d]\n  output y = x + "
      "1\n}");
  EXPECT_EQ(output_type(module), "f32[d=19]");
  EXPECT_EQ(std::get<Dim>(module.parameters[0].second), Dim(6));
}

TEST(Language, SettingsReplaceParametersAndSizes) {
  const std::string text = read(std::string(KUMI_SOURCE_DIR) + "/models/plamo.kumi");
  Module module =
      parse(text, {{"hidden", "80"}, {"layers", "2"}, {"ffn", "2 * hidden"}, {"seq", "8"}, {"eps", "1"}});
  EXPECT_EQ(*module.sizes[1].second, Dim(8));
  EXPECT_EQ(std::get<Dim>(module.parameters[5].second), Dim(160));
  EXPECT_EQ(std::get<double>(module.parameters[7].second), 1.0);
  EXPECT_EQ(parameter_count(parse(text)), 13'099'545'600);
}

TEST(Language, VariablesCarryThroughRepeats) {
  Module module = parse_body("y = x\nrepeat 3 as i in \"l.{i}\" {\n  z = y * i\n  y = y + z\n}\noutput y");
  const std::vector<std::string> ops = ops_of(module);
  EXPECT_EQ(std::count(ops.begin(), ops.end(), "mul"), 3);
  EXPECT_EQ(module.graphs[0].nodes.back().scope, "l.2");
  EXPECT_NE(body_message("repeat 2 { z = x }\noutput y = z").find("'z' is not defined"), std::string::npos);
}

TEST(Language, WeightsAreNamedByScopeAndSharedByName) {
  Module module = parse_body(
      "fn f(x) = x * weight(\"w\", [hidden], init = ones)\n"
      "scope \"a\" { scope \"b\" { y = f(x) } \n z = f(x) }\n y = x\n"
      "repeat 2 as i in \"r.{i}\" { y = f(y) }\n y = f(f(y))\n output y");
  std::vector<std::string> names;
  for (const State& state : module.states) names.push_back(state.name);
  EXPECT_EQ(names, (std::vector<std::string>{"a.b.w", "a.w", "r.0.w", "r.1.w", "w"}));
}

TEST(Language, FunctionsTakeNamesAndDefaults) {
  EXPECT_EQ(
      output_type(parse_body("fn f(x, n = 2, m = n * hidden) = broadcast(sum(x, axes = [0, 1]), [n, m])\n"
                             "output y = f(n = 3, x = x)")),
      "f32[3, 3*hidden=18]");
  EXPECT_NE(body_message("fn f(a) = a\noutput y = f(x, x)").find("too many arguments"), std::string::npos);
  EXPECT_NE(body_message("fn f(a) = a\noutput y = f(b = x)").find("no argument 'b'"), std::string::npos);
  EXPECT_NE(body_message("fn f(a) = f(a)\noutput y = f(x)").find("deep"), std::string::npos);
}

TEST(Language, ConditionsAreDecidedWhileReading) {
  const std::string body =
      "if hidden > 4 and not (heads == 3) { y = x } else if flag { y = x + 1 } else { y = -x }\noutput y";
  EXPECT_EQ(ops_of(parse_body(body)), (std::vector<std::string>{"input"}));
}

TEST(Language, NumbersBesideTensorsAreConstants) {
  Module module = parse_body("y = maximum(2 * x - 1, 0)\noutput y");
  int constants = 0;
  for (const Node& node : module.graphs[0].nodes) constants += node.op == "constant";
  EXPECT_EQ(constants, 3);
}

TEST(Language, SeveralErrorsInOneRun) {
  const std::string message =
      body_message("a = matmull(x)\nb = hidden / 4\nc = y_undefined\nd = a + 1\noutput e = d");
  EXPECT_NE(message.find("m.kumi:4:5: unknown function or op 'matmull'"), std::string::npos) << message;
  EXPECT_NE(message.find("m.kumi:5:12: hidden (6) is not a multiple of 4"), std::string::npos) << message;
  EXPECT_NE(message.find("m.kumi:6:5: 'y_undefined' is not defined"), std::string::npos) << message;
  // What depends on a line with an error is passed over.
  EXPECT_EQ(message.find("m.kumi:7"), std::string::npos) << message;
}

TEST(Language, ErrorsInFunctionsNameTheCall) {
  const std::string message = body_message("fn f(x, n) = reshape(x, [n, 7])\noutput y = f(x, 3)");
  EXPECT_EQ(message.find("m.kumi:4:14: reshape: "), 0u) << message;
  EXPECT_NE(message.find("while calling 'f' at m.kumi:5:12"), std::string::npos) << message;
  // Inside of the prelude the call is the place.
  EXPECT_EQ(body_message("output y = split_heads(x, heads)").find("m.kumi:4:12: "), 0u)
      << body_message("output y = split_heads(x, heads)");
}

// A body and what its error must say.
TEST(Language, RefusesWhatMakesNoSense) {
  const std::pair<const char*, const char*> kTable[] = {
      {"output y = x[0]", "end of the statement"},
      {"y = ", "found '}'"},
      {"output y = x + ", "found '}'"},
      {"output y = (x", "')' to close"},
      {"output y = \"abc", "not closed"},
      {"output y = x $ 2", "'$' has no meaning"},
      {"output y = 3 + 4", "is a whole number"},
      {"output y = x\noutput y = x", "two outputs 'y'"},
      {"y = x\noutput y = y y", "end of the statement"},
      {"hidden = 3", "cannot be assigned"},
      {"x = x + 1", "cannot be assigned"},
      {"let x = 3", "defined twice"},
      {"fn f(a, a) = a", "given twice"},
      {"z = x\nfn f(a) = a + z\noutput y = f(x)", "'z' is a variable"},
      {"z = x\nlet w = z\noutput y = w", "'z' is a variable"},
      {"let a = a\noutput y = x", "defined by itself: a -> a"},
      {"output y = hidden", "is a whole number"},
      {"output y = relu", "give it arguments"},
      {"output y = hidden(x)", "is a value, not a function"},
      {"output y = read(state = \"w\")", "cannot be called"},
      {"output y = relu(x, 3)", "too many arguments"},
      {"output y = softmax(x, axes = [0])", "no operand or attribute 'axes'"},
      {"output y = transpose(x, axes = 3)", "'axes' is a whole number"},
      {"output y = x * weight(\"w\", [hidden])", "'init' is missing"},
      {"output y = x * weight(\"w\", [hidden], init = random)", "no initializer"},
      {"output y = x * weight(\"w\", [hidden], init = normal(-1))", "0 or more"},
      {"output y = x * weight(\"w\", [0], init = ones)", "the size 0"},
      {"output y = x * weight(3, [hidden], init = ones)", "name is a whole number"},
      {"output y = x * weight(\"w\", hidden, init = ones)", "shape is a whole number"},
      {"output y = x * weight(\"w\", [hidden], init = ones, dtype = i32)", "element type is i32"},
      {"w = weight(\"w\", [hidden], init = ones)\nv = weight(\"w\", [2], init = ones)\noutput y = w",
       "declared twice"},
      {"y: f32[batch, 7] = x\noutput y", "declared as f32[batch, 7]"},
      {"y: f23[batch] = x\noutput y", "no element type 'f23'"},
      {"repeat 100000000 { y = 1 }\noutput y = x", "number of repeats"},
      {"repeat batch { y = 1 }\noutput y = x", "number of repeats is batch"},
      {"repeat -1 { y = 1 }\noutput y = x", "number of repeats is -1"},
      {"repeat 2 as i in \"{j}\" { y = 1 }\noutput y = x", "'j' is not defined"},
      {"repeat 2 as i in \"{i\" { y = 1 }\noutput y = x", "not closed"},
      {"if x { y = 1 }\noutput y = x", "the condition is a tensor"},
      {"return x\noutput y = x", "outside of a function"},
      {"relu(x)\noutput y = x", "is not used"},
      {"a, b, c = split(x, 2, axis = 1)\noutput y = a", "3 names for 2 values"},
      {"output y = split(x, 4, axis = 1)", "no 4 equal parts"},
      {"output y = reshape(x, [hidden / 0])", "divided by 0"},
      {"output y = reshape(x, [hidden * 1000000000000000000 * 1000000])", "64 bits"},
      {"output y = dim(x, 5)", "no axis 5"},
      {"y = x @ group 3\noutput y", "annotations"},
      {"y: f32[batch, hidden] at 64 = x\noutput y", "places in memory"},
      {"graph g { }\nstate weight \"w\": f32[2] = ones", "no other statements"},
      {"output y = -\"a\"", "'-' of a string"},
      {"output y = x + \"a\"", "a string"},
      {"output y = x + true", "true or false"},
      {"output y = 99999999999999999999", "out of range"},
      {"output y = \"\\q\"", "escape"},
      {"output y = 12abc", "neither a number nor a name"},
      {"... 38 more like this\noutput y = x", "folded view"},
  };
  for (const auto& [body, expected] : kTable) {
    const std::string message = body_message(body);
    EXPECT_NE(message.find(expected), std::string::npos) << body << "\n" << message;
    EXPECT_EQ(message.find("m.kumi:"), 0u) << body << "\n" << message;
  }
}

TEST(Language, RefusesWrongModels) {
  EXPECT_NE(message_of("").find("expected: a model"), std::string::npos);
  EXPECT_NE(message_of("model m {").find("not closed"), std::string::npos);
  EXPECT_NE(message_of("model m { input x: f32[2] }").find("has no output"), std::string::npos);
  EXPECT_NE(message_of("model m { input x: f32[2]\n output y = x } model").find("one model a file"),
            std::string::npos);
  EXPECT_NE(message_of("model m(a) { input x: f32[a]\n output y = x }").find("--set model.a="),
            std::string::npos);
  EXPECT_NE(message_of("model m { output y = 1 \xff }").find("not UTF-8 at byte 23"), std::string::npos);
  const std::string model = "model m(a = 1, b = 0.5, c = \"x\", d = true) { input x: f32[a]\n output y = x }";
  EXPECT_NE(message_of(model, {{"aa", "1"}}).find("did you mean 'a'?"), std::string::npos);
  EXPECT_NE(message_of(model, {{"a", "0.5"}}).find("whole number"), std::string::npos);
  EXPECT_NE(message_of(model, {{"a", "("}}).find("--set model.a=("), std::string::npos);
  EXPECT_NE(message_of(model, {{"a", "0"}}).find("the size"), std::string::npos);
  EXPECT_NE(message_of(model, {{"d", "3"}}).find("true or false"), std::string::npos);
  EXPECT_EQ(message_of(model, {{"b", "3"}, {"c", "tiled"}, {"d", "false"}}), "no error");
}

TEST(Language, NestingHasALimit) {
  const std::string open(100000, '('), lists(100000, '['), minus(100000, '-');
  for (const std::string& deep : {open, lists, minus})
    EXPECT_NE(body_message("output y = " + deep).find("too deep"), std::string::npos);
  std::string blocks, sum = "x";
  for (int i = 0; i < 1000; ++i) blocks += "scope \"s\" {";
  EXPECT_NE(body_message(blocks).find("too deep"), std::string::npos);
  for (int i = 0; i < 100000; ++i) sum += " + x";
  EXPECT_NE(body_message("output y = " + sum).find("too many terms"), std::string::npos);
}

// ------------------------------------------------------------------------------------------ dumps

PlanOptions train_options() {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.optimizer.accumulation = 2;
  options.optimizer.warmup_steps = 3;
  options.optimizer.decay_steps = 10;
  return options;
}

TEST(Print, RoundTripBeforeAndAfterEveryPass) {
  const std::pair<const char*, Settings> kModels[] = {
      {"plamo",
       {{"hidden", "64"},
        {"layers", "3"},
        {"heads", "8"},
        {"kv_heads", "2"},
        {"ffn", "160"},
        {"vocab", "97"},
        {"context", "16"}}},
      {"llama",
       {{"hidden", "64"},
        {"layers", "2"},
        {"heads", "8"},
        {"kv_heads", "2"},
        {"ffn", "160"},
        {"vocab", "97"},
        {"context", "16"}}},
      {"gpt2", {{"hidden", "64"}, {"layers", "2"}, {"heads", "4"}, {"vocab", "97"}, {"context", "16"}}},
      {"mlp", {}}};
  for (const auto& [name, settings] : kModels) {
    SCOPED_TRACE(name);
    const std::string text = read(concat(KUMI_SOURCE_DIR, "/models/", name, ".kumi"));
    const Module source = parse(text, settings);
    expect_round_trip(source);
    for (Goal goal : {Goal::kForward, Goal::kGradient, Goal::kTrain}) {
      PlanOptions options = train_options();
      options.goal = goal;
      run_pipeline(source, options, "", [](const Pass& pass, const Module& module, double) {
        SCOPED_TRACE(pass.name);
        expect_round_trip(module);
      });
    }
  }
}

TEST(Print, KeepsOddNames) {
  Module module = testing::small_model();
  const Dim odd = Dim::named("日本", Dim::symbol("batch") * Dim(3) - Dim(1));
  module.parameters.emplace_back("odd", odd);
  module.parameters.emplace_back("list", Shape{odd, Dim(-1), Dim::named("1+", 4), Dim::named("a b", 5)});
  module.parameters.emplace_back("text", std::string("{\"quoted\"}\n組"));
  module.parameters.emplace_back("infinite", -1.0 / 0.0);
  module.parameters.emplace_back("third", 1.0 / 3);
  module.parameters.emplace_back("type", DType::BF16);
  module.name = "odd model {name}";
  module.graphs[0].outputs[0].name = "the \"logits\"";
  module.graphs[0].nodes[3].scope = "a {scope}";
  module.graphs[0].nodes[4].location = {"other.kumi", 0, 0};
  module.graphs[0].nodes[5].location = {"other.kumi", 7, 0};
  module.graphs[0].nodes[6].location = {};
  module.graphs[0].nodes[3].group = 2;
  module.graphs[0].nodes[3].stream = 5;
  module.graphs[0].nodes[3].recomputed = true;
  expect_round_trip(module);
}

TEST(Print, FoldedViewShowsOneLayer) {
  const std::string text = read(std::string(KUMI_SOURCE_DIR) + "/models/plamo.kumi");
  const Module module = run_pipeline(parse(text), train_options());
  const std::string folded = print_folded(module), all = print_module(module);
  EXPECT_LT(folded.size() * 5, all.size());
  EXPECT_NE(folded.find("... 38 more like this"), std::string::npos) << folded.size();
  EXPECT_NE(message_of(folded).find("dump it again with --unfold"), std::string::npos);
}

TEST(Flat, FillsInWhatALineLeavesOut) {
  Module module = parse(
      "model m {\n  state weight \"w\": f32[4] = ones\n  graph forward {\n    x: f32[2, 4] = input(name = "
      "\"x\")\n"
      "    w: f32[4] = read(state = \"w\")\n    y = rms_norm(x, w)\n    output y = y\n  }\n}");
  EXPECT_EQ(output_type(module), "f32[2, 4]");
  EXPECT_EQ(float_attribute(module.graphs[0].nodes[2].attributes, "eps"), 1e-6);
}

TEST(Flat, RefusesWhatDoesNotFit) {
  const std::string head =
      "model m {\n  state weight \"w\": f32[4] = ones\n  graph forward {\n    x: f32[2, 4] = input(name = "
      "\"x\")\n";
  const std::pair<const char*, const char*> kTable[] = {
      {"y = silu(z)", "no value 'z' before this line"},
      {"y: f32[2, 5] = silu(x)", "declared as f32[2, 5]"},
      {"x = silu(x)", "two values are named 'x'"},
      {"y = sillu(x)", "did you mean 'silu'?"},
      {"y, z = silu(x)", "has 1 result, the line names 2"},
      {"y = silu(x, eps = 3)", "no attribute 'eps'"},
      {"y = x", "must be the call of an op"},
      {"y = silu(3)", "an operand must be"},
      {"y: f32[2, 4] = read(state = \"v\")", "no state \"v\""},
      {"y: f32[2, 4] = read(state = \"w\")", "is read as"},
      {"y: f32[2, 4] at 3 = silu(x)", "arena of unknown size"},
      {"y = silu(x) @ group -3", "0 or more"},
      {"let y = 3", "no other statements"},
      {"output y = z", "no value 'z'"},
  };
  for (const auto& [line, expected] : kTable) {
    const std::string message = message_of(head + "    " + line + "\n  }\n}");
    EXPECT_NE(message.find(expected), std::string::npos) << line << "\n" << message;
    EXPECT_EQ(message.find("m.kumi"), 0u) << message;
  }
  EXPECT_NE(message_of("model m { state wieght \"w\": f32[4] = ones }").find("did you mean 'weight'?"),
            std::string::npos);
  EXPECT_NE(message_of("model m { passes infer }", {{"a", "1"}}).find("cannot be set"), std::string::npos);
}

// ------------------------------------------------------------------------------------------- fuzz

// Damaged text gives a module or an Error, and a module goes through the planner or gives an Error.
void fuzz(const std::string& text, uint32_t seeds) {
  static const char* kPieces[] = {"(",     ")",   "[",      "]",     "{",    "}",     ",",
                                  ":",     "=",   "*",      "/",     "-",    "\"",    "#",
                                  "model", "let", "repeat", "batch", "fn ",  "0",     "-1",
                                  "1e400", "i32", "x",      "\n",    ".",    "@",     "at ",
                                  "in ",   "_",   "{i}",    "%",     "\xe7", "graph", "99999999999999"};
  for (uint32_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE(concat("seed ", seed));
    std::mt19937 random(seed);
    std::string damaged = text;
    for (uint32_t i = 0; i < 1 + seed % 3; ++i) {
      const size_t at = random() % damaged.size();
      const size_t length = std::min<size_t>(random() % 6, damaged.size() - at);
      if (random() % 3 == 0)
        damaged.replace(at, length, damaged.substr(random() % damaged.size(), random() % 30));
      else
        damaged.replace(at, length, kPieces[random() % std::size(kPieces)]);
      if (damaged.empty()) damaged = " ";
    }
    try {
      const Module module = parse_module(damaged, "fuzz.kumi");
      // Sizes grow with damaged numbers; planning a huge graph is not what is tested.
      if (!module.graphs.empty() && module.graphs[0].nodes.size() < 2000)
        run_pipeline(module, train_options());
    } catch (const Error&) {
    }
  }
}

TEST(LanguageFuzz, DamagedSources) {
  register_all_ops();
  fuzz(
      "model m(hidden = 8, heads = 2, layers = 2, groups = \"tiled\") {\n  size batch = 2, seq = 4\n"
      "  input tokens, labels: i32[batch, seq]\n  let d = hidden / heads\n"
      "  fn linear(x, name, out) = matmul(x, weight(name, [out, last_dim(x)], init = normal(0.02)), "
      "transpose_b = true)\n"
      "  x = embedding(tokens, weight(\"e\", [11, hidden], init = normal(0.02)))\n"
      "  repeat layers as i in \"l.{i}\" {\n    q, k = split(linear(x, \"qk\", 2 * hidden), 2, axis = -1)\n"
      "    y = attention(split_heads(q, heads), split_heads(k, heads), split_heads(x, heads), groups = "
      "groups)\n"
      "    if d > 2 { x = x + merge_heads(y) } else { x = x }\n  }\n"
      "  output logits = linear(x, \"head\", 11), loss = cross_entropy(logits, labels)\n}\n",
      1500);
}

TEST(LanguageFuzz, DamagedDumps) {
  PlanOptions options = train_options();
  options.sizes = {{"seq", 5}};
  fuzz(print_module(testing::small_model()), 1000);
  fuzz(print_module(run_pipeline(testing::small_model(), options)), 500);
}

// -------------------------------------------------------------------------------------------- docs

// Every example of docs/language.md: models must be read, wrong ones give the message below them.
TEST(LanguageDocs, ExamplesRun) {
  register_all_ops();
  const std::string text = read(std::string(KUMI_SOURCE_DIR) + "/docs/language.md");
  auto blocks = [&](const std::string& kind) {
    std::vector<std::string> found;
    const std::string begin = "```" + kind + "\n";
    for (size_t at = text.find(begin); at != std::string::npos; at = text.find(begin, at + 1)) {
      const size_t first = at + begin.size();
      found.push_back(text.substr(first, text.find("```", first) - first));
    }
    return found;
  };
  EXPECT_EQ(blocks("kumi").size(), 3u);
  for (const std::string& example : blocks("kumi")) {
    SCOPED_TRACE(example);
    const Module module = parse_module(example, "example.kumi");
    expect_round_trip(module);
    EXPECT_NO_THROW(run_pipeline(module, {}, "infer"));
  }
  const std::vector<std::string> wrong = blocks("kumi-error"), messages = blocks("message");
  ASSERT_EQ(wrong.size(), 1u);
  ASSERT_EQ(messages.size(), wrong.size());
  for (size_t i = 0; i < wrong.size(); ++i) {
    try {
      parse_module(wrong[i], "wrong.kumi");
      ADD_FAILURE() << wrong[i];
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()) + "\n", messages[i]);
    }
  }
}

}  // namespace
}  // namespace kumi
