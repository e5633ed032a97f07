// Failing well: broken models, recipes, weights, batches, protobuf files, checkpoints and places, each
// with the message it must give. Every case ends with status 1, within the time and memory of a small
// run, names the file, the place and the cause, and leaves nothing behind.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "runtime/atomic_file.h"
#include "runtime/safetensors.h"
#include "tests/support/run_command.h"
#include "tests/support/tiny_run.h"

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLongestMessage = 10000;

struct BadInput {
  const char* name;
  std::vector<std::pair<std::string, std::string>> files;  // in the folder in which the command runs
  std::vector<std::string> command;
  std::vector<std::string> expected;  // parts of the message
  std::map<std::string, std::string> environment = {};
};

std::string models(const std::string& name) {
  return std::string(KUMI_SOURCE_DIR) + "/models/" + name;
}

std::string times(int count, const std::string& text) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  if (at == std::string::npos) throw std::logic_error("the text has no '" + from + "'");
  return text.replace(at, from.size(), to);
}

class BadInputs : public ::testing::Test {
 protected:
  // Files that are there in every case.
  std::vector<std::pair<std::string, std::string>> common_;

  void run(const std::vector<BadInput>& cases) const {
    for (const BadInput& bad : cases) run(bad);
  }

  void run(const BadInput& bad) const {
    const TemporaryFolder folder;
    for (const auto& [name, contents] : common_) folder.write(name, contents);
    for (const auto& [name, contents] : bad.files) {
      if (name.ends_with("/"))
        fs::create_directories(folder / name);
      else
        folder.write(name, contents);
    }
    CommandOptions options;
    options.directory = folder.path();
    options.environment = bad.environment;
    options.time_limit = std::chrono::seconds(120);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    options.largest_memory = int64_t{8} << 30;
#endif
    const std::string before = folder.listing();
    const CommandResult result = run_kumi(bad.command, options);
    std::string wrong = complaints(bad, result);
    if (bad.command[0] != "train" && folder.listing() != before) wrong += "leaves: " + folder.listing();
    if (bad.command[0] == "train") wrong += left_by_training(bad, folder);
    if (!wrong.empty()) ADD_FAILURE() << bad.name << ":\n" << wrong << result.description();
  }

 private:
  static std::string complaints(const BadInput& bad, const CommandResult& result) {
    std::string wrong;
    if (result.status != 1) wrong += "not exit status 1\n";
    if (!result.err.starts_with("kumi: error: ")) wrong += "no message\n";
    if (result.err.find("unexpected: ") != std::string::npos) wrong += "an error that was not thought of\n";
    if (result.err.size() > kLongestMessage) wrong += "a message that nobody reads\n";
    for (const std::string& part : bad.expected)
      if (result.err.find(part) == std::string::npos) wrong += "missing: " + part + "\n";
    return wrong;
  }

  // What training had to make on the way may stay, but no unfinished file and nothing that was asked for.
  static std::string left_by_training(const BadInput& bad, const TemporaryFolder& folder) {
    std::string wrong;
    std::istringstream names(folder.listing());
    for (std::string name; std::getline(names, name);)
      if (name.find(".tmp-") != std::string::npos) wrong += "leaves: " + name + "\n";
    for (size_t i = 0; i + 1 < bad.command.size(); ++i)
      if (bad.command[i] == "--export" || bad.command[i] == "--profile")
        if (fs::is_regular_file(folder / bad.command[i + 1])) wrong += "leaves: " + bad.command[i + 1] + "\n";
    return wrong;
  }
};

// --------------------------------------------------------------------------------------- the language

const char kModel[] = R"(model m(vocab = 16, hidden = 8, layers = 2) {
  size batch = 1, seq = 4
  input tokens, labels: i32[batch, seq]
  fn linear(x, name, out) = matmul(x, weight(name, [out, last_dim(x)], init = normal(0.02)), transpose_b = true)
  x = embedding(tokens, weight("embed", [vocab, hidden], init = normal(0.02)))
  repeat layers as i in "layers.{i}" {
    x = x + linear(silu(linear(x, "up", 3 * hidden)), "down", hidden)
  }
  output logits = linear(x, "head", vocab)
  output loss = cross_entropy(logits, labels)
}
)";

// The model with one part replaced.
std::string edited(const std::string& from, const std::string& to) {
  return replaced(kModel, from, to);
}

// A line of its own after the inputs, which are in line 3.
std::string with_line(const std::string& line) {
  return edited("  fn linear", "  " + line + "\n  fn linear");
}

BadInput bad_model(const char* name, std::string text, std::vector<std::string> expected,
                   std::vector<std::string> more_arguments = {}) {
  std::vector<std::string> command = {"check", "bad.kumi"};
  command.insert(command.end(), more_arguments.begin(), more_arguments.end());
  return {name, {{"bad.kumi", std::move(text)}}, std::move(command), std::move(expected)};
}

TEST_F(BadInputs, LanguageSyntax) {
  run({
      bad_model("empty", "", {"bad.kumi:1:1: found the end of the text", "expected: a model: model NAME"}),
      bad_model("prose", "Once upon a time\n", {"bad.kumi:1:1: found 'Once'", "Once upon a time\n  ^"}),
      bad_model("recipe", "model { path: \"plamo.kumi\" }\n",
                {"bad.kumi:1:7: found '{'", "the model's name"}),
      bad_model("not closed", edited("  output loss = cross_entropy(logits, labels)\n}\n", ""),
                {"bad.kumi:1:45: this block is not closed"}),
      bad_model("parenthesis not closed",
                edited("cross_entropy(logits, labels)", "cross_entropy(logits, labels"),
                {"bad.kumi:11:1: found '}'", "expected: ',' between arguments, or ')'"}),
      bad_model("string not closed", edited("\"embed\"", "\"embed"),
                {"bad.kumi:5:32: the string is not closed"}),
      bad_model("unknown escape", edited("\"embed\"", "\"em\\qbed\""), {"bad.kumi:5:", "\\q", "\\u{"}),
      bad_model("brace of a string not closed", edited("\"layers.{i}\"", "\"layers.{i\""),
                {"bad.kumi:6:25: a brace in the string is not closed"}),
      bad_model("no such symbol", edited("x = embedding", "x $ embedding"),
                {"bad.kumi:5:5: '$' has no meaning"}),
      bad_model("two statements in a line", with_line("let a = 1 let b = 2"),
                {"bad.kumi:4:13: found 'let'", "a new line or ';'"}),
      bad_model("number too large", edited("vocab = 16", "vocab = 99999999999999999999"),
                {"bad.kumi:1:17: the number 99999999999999999999 is out of range"}),
      bad_model("two models", std::string(kModel) + kModel, {"bad.kumi:12:1: found 'model' after the model"}),
      bad_model("parameter twice", edited("layers = 2", "vocab = 2"),
                {"bad.kumi:1:", "'vocab' is given twice"}),
      bad_model("a thousand errors", "model m() {\n" + times(1000, "  x = = 1\n") + "}\n",
                {"bad.kumi:2:7: found '='"}),
      bad_model("deep parentheses", with_line("let a = " + times(100000, "(") + "1"),
                {"bad.kumi:4:", "nesting is too deep"}),
      bad_model("deep lists", with_line("let a = " + times(100000, "[")),
                {"bad.kumi:4:", "nesting is too deep"}),
      bad_model("deep signs", with_line("let a = " + times(100000, "-") + "1"),
                {"bad.kumi:4:", "nesting is too deep"}),
      bad_model("deep blocks", with_line(times(100000, "repeat 1 {")),
                {"bad.kumi:4:", "nesting is too deep"}),
      bad_model("deep else", with_line(times(50000, "if true {} else ") + "{}"),
                {"bad.kumi:4:", "nesting is too deep"}),
      bad_model("many terms", with_line("let a = 1" + times(100000, "+1")),
                {"bad.kumi:4:", "too many terms"}),
      bad_model("comparisons in a row", with_line("let a = 1 < 2 < 3"), {"bad.kumi:4:17: found '<'"}),
      bad_model("no UTF-8", edited("\"embed\"", "\"em\xFF\x62\x65\x64\""),
                {"bad.kumi:5: the text is not UTF-8"}),
      bad_model("UTF-16", std::string("\xFF\xFEm\0o\0d\0e\0l\0", 12), {"not UTF-8"}),
      bad_model("zeros", std::string(1000, '\0'), {"bad.kumi:1:1: "}),
      bad_model("binary",
                "\x7f"
                "ELF\x02\x01\x01",
                {"bad.kumi:1:1: "}),
  });
}

TEST_F(BadInputs, LanguageNames) {
  run({
      bad_model(
          "unknown op", edited("silu(", "siluu("),
          {"bad.kumi:7:20: unknown function or op 'siluu'", "did you mean 'silu'?",
           "x = x + linear(siluu(linear(x, \"up\", 3 * hidden)), \"down\", hidden)\n                     ^"}),
      bad_model("unknown attribute", edited("transpose_b =", "transposed_b ="),
                {"bad.kumi:4:", "transposed_b", "did you mean 'transpose_b'?"}),
      bad_model("unknown value", edited("(logits, labels)", "(logits, lables)"),
                {"bad.kumi:10:39: 'lables' is not defined", "did you mean 'labels'?"}),
      bad_model("unknown argument",
                edited("linear(x, \"head\", vocab)", "linear(x, nme = \"head\", out = vocab)"),
                {"bad.kumi:9:", "'linear' has no argument 'nme'", "did you mean 'name'?"}),
      bad_model("missing argument", edited("linear(x, \"head\", vocab)", "linear(x, \"head\")"),
                {"bad.kumi:9:19: 'linear': the argument 'out' is missing"}),
      bad_model("too many arguments", edited("silu(", "silu(x, x, x, "), {"bad.kumi:7:", "'silu'"}),
      bad_model("a value called", with_line("let a = hidden(3)"), {"bad.kumi:4:11: ", "'hidden' is a value"}),
      bad_model("a function as value", with_line("let a = linear + 1"),
                {"bad.kumi:", "'linear' is a function"}),
      bad_model("defined twice", with_line("let a = 1\n  let a = 2"),
                {"bad.kumi:5:3: 'a' is defined twice", "line 4"}),
      bad_model("a parameter assigned", with_line("hidden = 3"),
                {"bad.kumi:4:3: 'hidden' cannot be assigned"}),
      bad_model("weight of two shapes", edited("\"head\", vocab", "\"embed\", 3"),
                {"bad.kumi:", "the weight 'embed' is declared twice, as f32[vocab (16), hidden (8)]"}),
      bad_model("output twice", edited("output loss =", "output logits ="),
                {"bad.kumi:10:", "two outputs 'logits'"}),
      bad_model("no output", "model m() {\n  size n = 3\n  input x: f32[n]\n}\n",
                {"bad.kumi:1:1: the model 'm' has no output"}),
      bad_model("unknown type", edited("i32[batch, seq]", "i33[batch, seq]"),
                {"bad.kumi:3:25: there is no element type 'i33'", "did you mean 'i32'?"}),
      bad_model("variable of another block",
                edited("output logits = linear(x,", "fn f() = x\n  output logits = linear(f(),"),
                {"bad.kumi:9:12: 'x' is a variable", "hand it over as an argument"}),
      bad_model("unknown initializer", edited("init = normal(0.02)))", "init = gauss(0.02)))"),
                {"bad.kumi:5:", "this is no initializer", "normal(standard deviation)"}),
      bad_model("control character in a name", edited("\"embed\"", "\"em\\nbed\""),
                {"bad.kumi:5:", "a weight cannot be named"}),
      bad_model("unknown parameter", kModel,
                {"no parameter 'hiden'", "did you mean 'hidden'?", "--set model.hiden=3"},
                {"--set", "model.hiden=3"}),
  });
}

TEST_F(BadInputs, LanguageNumbers) {
  run({
      bad_model("cyclic let", with_line("let a = b + 1\n  let b = a - 1"), {"is defined by itself"}),
      bad_model("let of itself", with_line("let a = a"), {"bad.kumi:4:", "'a' is defined by itself"}),
      bad_model("endless recursion", with_line("fn f(n) = f(n + 1)\n  let a = f(1)"),
                {"bad.kumi:4:", "deep"}),
      bad_model("recursion that doubles", with_line("fn f(n) = f(n + 1) + f(n + 1)\n  let a = f(1)"),
                {"deep"}),
      bad_model("division by zero", with_line("let a = hidden / (vocab - 16)"),
                {"bad.kumi:4:18: hidden (8) is divided by 0"}),
      bad_model("remainder of zero", with_line("let a = 7 % 0"), {"bad.kumi:4:", "divided by 0"}),
      bad_model("uneven division", with_line("let a = hidden / 3"),
                {"bad.kumi:4:18: hidden (8) is not a multiple of 3"}),
      bad_model("smallest integer", with_line("let a = (-9223372036854775807 - 1) / -1"), {"bad.kumi:4:"}),
      bad_model("overflow", with_line("let a = 9223372036854775807 + hidden"), {"bad.kumi:4:", "64 bits"}),
      bad_model("overflow of a product", with_line("let a = 4611686018427387904 * hidden"),
                {"bad.kumi:4:", "64 bits"}),
      bad_model("huge repeat", edited("repeat layers", "repeat 1000000000"),
                {"bad.kumi:6:10: the number of repeats is 1000000000", "expected: 0 to "}),
      bad_model("negative repeat", edited("repeat layers", "repeat -1"),
                {"bad.kumi:6:10: the number of repeats is -1"}),
      bad_model("repeat of a size", edited("repeat layers", "repeat seq"),
                {"bad.kumi:6:10: the number of repeats is seq"}),
      bad_model("repeats without end", with_line(times(6, "repeat 100000 { ") + "let a = 1" + times(6, " }")),
                {"bad.kumi:", "does not come to an end"}),
      bad_model(
          "too many nodes",
          edited("x = x + linear(silu(linear(x, \"up\", 3 * hidden)), \"down\", hidden)", "x = -(-(-x))"),
          {"bad.kumi:7:", "the graph has more than 200000 nodes"}, {"--set", "model.layers=100000"}),
      bad_model("zero size", kModel, {"the size", "vocab"}, {"--set", "model.vocab=0"}),
      bad_model("negative size", kModel, {"hidden"}, {"--set", "model.hidden=-8"}),
      bad_model("absurd size", kModel, {"vocab"}, {"--set", "model.vocab=9223372036854775807"}),
      bad_model("absurd product", kModel, {"64 bits"},
                {"--size", "batch=4000000000", "--size", "seq=4000000000"}),
      bad_model("condition is no truth", with_line("if hidden { }"), {"bad.kumi:4:6: the condition is"}),
      bad_model("sum of string and number", with_line("let a = \"x\" + 1"), {"bad.kumi:4:15: '+' of"}),
      bad_model("word for a number", kModel, {"'abc' is not defined"}, {"--set", "model.hidden=abc"}),
      bad_model("fraction for a number", kModel, {"--set model.hidden=1.5", "a whole number"},
                {"--set", "model.hidden=1.5"}),
      bad_model("nothing for a number", kModel, {"--set model.hidden="}, {"--set", "model.hidden="}),
      bad_model("code for a number", kModel, {"--set model.hidden="},
                {"--set", "model.hidden=" + times(1000, "(")}),
      bad_model("cyclic settings", kModel, {"is defined by itself"},
                {"--set", "model.hidden=vocab", "--set", "model.vocab=hidden"}),
      {"setting without a value",
       {{"m.kumi", kModel}},
       {"check", "m.kumi", "--set", "hidden"},
       {"--set hidden", "NAME=VALUE"}},
      {"setting without a name",
       {{"m.kumi", kModel}},
       {"check", "m.kumi", "--set", "=3"},
       {"--set =3", "NAME=VALUE"}},
      {"unknown size",
       {{"m.kumi", kModel}},
       {"check", "m.kumi", "--size", "bach=2"},
       {"no size 'bach'", "did you mean 'batch'?"}},
      {"size of zero", {{"m.kumi", kModel}}, {"check", "m.kumi", "--size", "batch=0"}, {"--size batch=0"}},
      {"size of a word",
       {{"m.kumi", kModel}},
       {"check", "m.kumi", "--size", "batch=two"},
       {"--size batch=two"}},
      {"size out of range",
       {{"m.kumi", kModel}},
       {"check", "m.kumi", "--size", "batch=99999999999999999999"},
       {"--size batch="}},
  });
}

TEST_F(BadInputs, LanguageShapes) {
  run({
      bad_model("shapes that do not add", edited("\"down\", hidden)", "\"down\", vocab)"),
                {"bad.kumi:7:", "hidden (8)", "vocab (16)"}),
      bad_model("inner dimensions", edited("[out, last_dim(x)]", "[out, vocab]"),
                {"bad.kumi:", "matmul", "hidden (8)"}),
      bad_model("ranks", edited("cross_entropy(logits, labels)", "cross_entropy(labels, logits)"),
                {"bad.kumi:10:", "cross_entropy"}),
      bad_model("floating tokens", edited("tokens, labels: i32", "tokens, labels: f32"),
                {"bad.kumi:5:", "embedding"}),
      bad_model("reshape of another size", with_line("y = reshape(weight(\"w\", [6], init = ones), [4])"),
                {"bad.kumi:4:", "reshape"}),
      bad_model("axis beyond the rank",
                with_line("y = transpose(weight(\"w\", [6], init = ones), axes = [1, 0])"),
                {"bad.kumi:4:", "transpose"}),
      bad_model("uneven split", with_line("a, b, c = split(weight(\"w\", [8], init = ones), 3, axis = 0)"),
                {"bad.kumi:4:", "split"}),
      bad_model("dim beyond the rank", with_line("let a = dim(tokens, 2)"),
                {"bad.kumi:4:", "there is no axis 2"}),
      bad_model("more names than results", with_line("a, b = silu(weight(\"w\", [8], init = ones))"),
                {"bad.kumi:4:3: 2 names for 1 value"}),
      bad_model("declared otherwise", with_line("y: f32[3] = silu(weight(\"w\", [8], init = ones))"),
                {"bad.kumi:4:3: 'y' is declared as f32[3], but is f32[8]"}),
      {"loss is no scalar",
       {{"bad.kumi", edited("output loss = cross_entropy(logits, labels)", "output loss = logits")}},
       {"dump", "bad.kumi", "--goal", "gradient", "--after", "autodiff"},
       {"loss", "f32[batch (1), seq (4), vocab (16)]"}},
      bad_model("heads that do not divide",
                edited("x = embedding",
                       "h = split_heads(weight(\"w\", [1, 2, hidden], init = ones), 3)\n  x = embedding"),
                {"bad.kumi:5:", "hidden (8)", "multiple of 3"}),
      {"more heads than fit",
       {},
       {"check", models("plamo.kumi"), "--set", "model.heads=7"},
       {"plamo.kumi:", "hidden (5120) is not a multiple of"}},
      {"key/value heads that do not divide",
       {},
       {"check", models("llama.kumi"), "--set", "model.kv_heads=5"},
       {"llama.kumi:", "heads"}},
      {"sequence beyond the context",
       {},
       {"check", models("gpt2.kumi"), "--size", "seq=1025"},
       {"gpt2.kumi:", "1025"}},
  });
}

// Dumps are models too, and can be edited by anyone.
TEST_F(BadInputs, Dumps) {
  const auto dump = [](const std::string& body) { return "model m() {\n  passes infer\n" + body + "}\n"; };
  const auto graph = [&](const std::string& body) { return dump("  graph forward {\n" + body + "  }\n"); };
  run({
      bad_model("unknown op", graph("    x: f32[4] = constnt(value = 1.0)\n    output x\n"),
                {"bad.kumi:4:17: ", "constnt", "did you mean 'constant'?"}),
      bad_model("value before its line", graph("    y: f32[4] = neg(x)\n    output y\n"),
                {"bad.kumi:4:21: there is no value 'x'"}),
      bad_model(
          "two values of a name",
          graph("    x: i32[4] = input(name = \"x\")\n    x: i32[4] = input(name = \"y\")\n    output x\n"),
          {"bad.kumi:5:5: two values are named 'x'"}),
      bad_model("wrong type",
                graph("    x: f32[4] = input(name = \"x\")\n    y: f32[5] = neg(x)\n    output y\n"),
                {"bad.kumi:5:8: 'y' is declared as f32[5]", "f32[4], what 'neg' gives"}),
      bad_model("unknown state", graph("    x: f32[4] = read(state = \"w\")\n    output x\n"), {"w"}),
      bad_model("state of another type",
                dump("  state weight \"w\": f32[5] = zeros\n  graph forward {\n    x: f32[4] = read(state = "
                     "\"w\")\n    output x\n  }\n"),
                {"w"}),
      bad_model("kind of state",
                dump("  state weigth \"w\": f32[4] = zeros\n  graph forward {\n    output x\n  }\n"),
                {"bad.kumi:3:3: there is no kind of state 'weigth'", "did you mean 'weight'?"}),
      bad_model("output of nothing", graph("    output x\n"), {"bad.kumi:4:12: there is no value 'x'"}),
      bad_model("unknown pass",
                "model m() {\n  passes infer, autodif\n  graph forward {\n    x: f32[4] = input(name = "
                "\"x\")\n    output x\n  }\n}\n",
                {"unknown pass \"autodif\"", "did you mean 'autodiff'?"}),
      bad_model("passes in another order",
                "model m() {\n  passes autodiff, infer\n  graph forward {\n    x: f32[4] = input(name = "
                "\"x\")\n    output x\n  }\n}\n",
                {"order"}),
      bad_model("symbolic sizes after infer", graph("    x: f32[n] = input(name = \"x\")\n    output x\n"),
                {"n"}),
      bad_model("huge tensor",
                graph("    x: f32[4611686018427387904, 4] = input(name = \"x\")\n    output x\n"),
                {"64 bits"}),
      bad_model("no graph", dump(""), {"m"}),
      bad_model("a folded view", "model m() {\n  passes infer\n  graph forward {\n    ...\n  }\n}\n",
                {"bad.kumi:4:", "--unfold"}),
      {"dumped at a stage that is past",
       {{"bad.kumi", dump("  graph forward {\n    x: f32[4] = input(name = \"x\")\n    output x\n  }\n")}},
       {"dump", "bad.kumi", "--after", "nothing"},
       {"unknown pass \"nothing\""}},
  });
}

// ------------------------------------------------------------------------------------------- recipes

const char kRecipe[] = R"(model { path: "m.kumi" }
data {
  sources { name: "text" path: "text.txt" }
  tokenizer { vocab_size: 300 }
  sequence_length: 8
  batch_size: 2
}
steps: 3
output: "run"
)";

BadInput bad_recipe(const char* name, std::string text, std::vector<std::string> expected,
                    std::vector<std::string> more_arguments = {}) {
  std::vector<std::string> command = {"train", "bad.txtpb", "--export", "weights.out"};
  command.insert(command.end(), more_arguments.begin(), more_arguments.end());
  return {name, {{"bad.txtpb", std::move(text)}}, std::move(command), std::move(expected)};
}

TEST_F(BadInputs, Recipes) {
  const auto edit = [](const std::string& from, const std::string& to) {
    return replaced(kRecipe, from, to);
  };
  const auto with = [](const std::string& line) { return std::string(kRecipe) + line + "\n"; };
  common_ = {{"m.kumi", edited("vocab = 16", "vocab = 320")}, {"text.txt", tiny_text()}};
  run({
      bad_recipe("no text format", "{\"steps\": 3}\n", {"bad.txtpb:1:1: "}),
      bad_recipe("empty", "", {"bad.txtpb: the recipe names no model", "has no data"}),
      bad_recipe("not closed", edit("}\nsteps", "\nsteps"), {"bad.txtpb:"}),
      bad_recipe("unknown field", edit("sources {", "sorces {"),
                 {"bad.txtpb:3:", "the group Data has no field 'sorces'", "did you mean 'sources'?"}),
      bad_recipe("unknown field at the top", with("stepps: 4"),
                 {"bad.txtpb:10:", "a recipe has no field 'stepps'"}),
      bad_recipe("string for a number", edit("steps: 3", "steps: \"three\""), {"bad.txtpb:8:8: "}),
      bad_recipe("number out of range", edit("steps: 3", "steps: 99999999999999999999"), {"bad.txtpb:8:8: "}),
      bad_recipe("negative steps", edit("steps: 3", "steps: -3"),
                 {"bad.txtpb:8:1: steps is -3", "steps: -3"}),
      bad_recipe("no steps", edit("steps: 3", ""), {"for how many steps"}),
      bad_recipe("twice", with("steps: 4"), {"bad.txtpb:10:"}),
      bad_recipe("several at once",
                 with("optimizer { learning_rate: -1 beta1: 1 beta2: -0.5 eps: 0 clip: nan }"),
                 {"optimizer.learning_rate is -1", "optimizer.beta1 is 1", "optimizer.beta2 is -0.5",
                  "optimizer.eps is 0", "optimizer.clip is nan", "bad.txtpb:10:"}),
      bad_recipe("decay before warm-up", with("optimizer { warmup_steps: 10 decay_steps: 5 }"),
                 {"bad.txtpb:10:", "decay_steps is 5"}),
      bad_recipe("accumulation of none", with("accumulation: 0"), {"bad.txtpb:10:1: accumulation is 0"}),
      bad_recipe("empty batch", edit("batch_size: 2", "batch_size: 0"),
                 {"bad.txtpb:6:3: data.batch_size is 0"}),
      bad_recipe("absurd length", edit("sequence_length: 8", "sequence_length: 1000000000"),
                 {"the text has only", "expected: at least 1000000001"}),
      bad_recipe("checkpoints", with("checkpoint { every: -1 keep: -1 }"),
                 {"checkpoint.every is -1", "checkpoint.keep is -1"}),
      bad_recipe("memory", with("memory_limit: \"much\""), {"bad.txtpb:10:1: ", "no amount of memory"}),
      bad_recipe("no such optimization", with("plan { disable: \"fuse\" disable: \"memry\" }"),
                 {"bad.txtpb:10:", "there is no optimization \"memry\""}),
      bad_recipe("no such precision", with("precision: F33"), {"bad.txtpb:", "F33", "precision"}),
      bad_recipe("rule for documents", edit("path: \"text.txt\"", "path: \"text.txt\" documents: \"lines\""),
                 {"bad.txtpb:3:", "documents is \"lines\"", "did you mean 'line'?"}),
      bad_recipe("two sources of a name",
                 edit("  tokenizer", "  sources { name: \"text\" path: \"text.txt\" }\n  tokenizer"),
                 {"two sources are named 'text'"}),
      bad_recipe("name that leads elsewhere", edit("name: \"text\"", "name: \"../text\""),
                 {"bad.txtpb:3:", "letters, digits"}),
      bad_recipe("weight of nothing", edit("path: \"text.txt\"", "path: \"text.txt\" weight: 0"),
                 {"weight is 0"}),
      bad_recipe("text and batches", edit("batch_size: 2", "batches: \"b.safetensors\""),
                 {"bad.txtpb:6:3: ", "both data.sources and data.batches"}),
      bad_recipe("a group twice", with("data { batch_size: 3 }"), {"bad.txtpb:10:6: ", "data"}),
      bad_recipe("no UTF-8", with("# \xFF"), {"bad.txtpb: the recipe is not UTF-8"}),
      bad_recipe("huge", with(times(1 << 20, "# a comment that is too long\n")),
                 {"bad.txtpb: the recipe has "}),
      bad_recipe("deep", with(times(100000, "data {")), {"bad.txtpb"}),
      bad_recipe("device", with("device: \"gpuu\""), {"the device 'gpuu'"}),
      bad_recipe("device elsewhere", with("device: \"../cpu\""), {"'../cpu' is not a device's name"}),
      bad_recipe("setting of an unknown field", kRecipe,
                 {"--set optimizer.lr=1: there is no field 'lr'", "expected: one of learning_rate"},
                 {"--set", "optimizer.lr=1"}),
      bad_recipe("setting of a group", kRecipe, {"--set optimizer=1"}, {"--set", "optimizer=1"}),
      bad_recipe("setting of the wrong type", kRecipe, {"--set steps=many"}, {"--set", "steps=many"}),
      bad_recipe("setting of a far element", kRecipe, {"--set data.sources[999999999].weight=1"},
                 {"--set", "data.sources[999999999].weight=1"}),
      bad_recipe("setting of a negative element", kRecipe, {"--set data.sources[-1].weight=1"},
                 {"--set", "data.sources[-1].weight=1"}),
      bad_recipe("setting of the model", kRecipe, {"no parameter 'hiden'", "did you mean 'hidden'?"},
                 {"--set", "model.hiden=3"}),
      {"missing", {}, {"train", "missing.txtpb"}, {"missing.txtpb: "}},
      {"a folder", {{"folder/", ""}}, {"train", "folder"}, {"folder: "}},
      {"threads",
       {{"r.txtpb", kRecipe}},
       {"train", "r.txtpb"},
       {"KUMI_THREADS is 'many'"},
       {{"KUMI_THREADS", "many"}}},
  });
}

// The address sanitizer ends the program where there is no memory.
#ifndef __SANITIZE_ADDRESS__
TEST_F(BadInputs, MoreThanFitsIntoMemory) {
  common_ = {{"m.kumi", edited("vocab = 16", "vocab = 320")}, {"text.txt", tiny_text()}};
  run({bad_recipe("absurd batch", replaced(kRecipe, "batch_size: 2", "batch_size: 1000000000"), {"memory"})});
}
#endif

TEST_F(BadInputs, TrainingData) {
  const auto edit = [](const std::string& from, const std::string& to) {
    return replaced(kRecipe, from, to);
  };
  common_ = {{"m.kumi", edited("vocab = 16", "vocab = 320")},
             {"n.kumi", edited("output loss = cross_entropy(logits, labels)", "")}};
  const auto with_text = [&](const char* name, const std::string& text, std::vector<std::string> expected,
                             const std::string& recipe = kRecipe) {
    BadInput bad = bad_recipe(name, recipe, std::move(expected));
    bad.files.emplace_back("text.txt", text);
    return bad;
  };
  const std::string text = tiny_text();
  run({
      bad_recipe("no such text", kRecipe, {"text.txt"}),
      with_text("empty text", "", {"text"}),
      with_text("blank text", "\n\n  \n\t\n", {"text"}),
      with_text("no UTF-8", text + "\xC0\xAF", {"text.txt", "UTF-8", std::to_string(text.size())}),
      with_text("vocabulary too large for the text", "a b c\n", {"300"}),
      with_text("vocabulary larger than the model's", text, {"300", "vocab"},
                edit("m.kumi\"", "m.kumi\" set { name: \"vocab\" value: \"299\" }")),
      with_text("text too short", text, {"text", "expected: at least 1000001"},
                edit("sequence_length: 8", "sequence_length: 1000000")),
      [&] {
        BadInput bad = bad_recipe("damaged gzip", edit("text.txt", "text.gz"), {"text.gz"});
        bad.files.emplace_back("text.gz", "\x1f\x8b\x08 and nothing that could be unpacked");
        return bad;
      }(),
      with_text("model without a loss", text, {"loss"}, edit("m.kumi", "n.kumi")),
  });
}

TEST_F(BadInputs, Places) {
  common_ = {{"m.kumi", edited("vocab = 16", "vocab = 320")},
             {"text.txt", tiny_text()},
             {"r.txtpb", kRecipe},
             {"file", ""},
             {"folder/keep", ""}};
  run({
      {"output is a file",
       {},
       {"train", "r.txtpb", "--set", "output=file"},
       {"file: cannot create the folder"}},
      {"export into no folder",
       {},
       {"train", "r.txtpb", "--export", "none/w.safetensors"},
       {"none/w.safetensors: cannot write the file"}},
      {"export is a folder",
       {},
       {"train", "r.txtpb", "--export", "folder"},
       {"folder: cannot write the file: it is a folder"}},
      {"log into no folder",
       {},
       {"train", "r.txtpb", "--log", "none/log.jsonl"},
       {"none/log.jsonl: cannot write the file"}},
      {"log on a full disk", {}, {"train", "r.txtpb", "--log", "/dev/full"}, {"/dev/full: cannot write"}},
      {"profile is a folder",
       {},
       {"train", "r.txtpb", "--profile", "folder"},
       {"folder: cannot write the file"}},
      {"resume of nothing",
       {},
       {"train", "r.txtpb", "--resume", "--set", "output=", "--set", "data.cache=cache"},
       {"there is nothing to resume", "r.txtpb"}},
      {"dump into no folder",
       {},
       {"dump", "m.kumi", "-o", "none/m.txt"},
       {"none/m.txt: cannot write the file"}},
      {"dump is a folder", {}, {"dump", "m.kumi", "-o", "folder"}, {"folder: cannot write the file"}},
      {"dumps into a file", {}, {"dump", "m.kumi", "--all", "file"}, {"file: cannot create the folder"}},
      {"no such model", {}, {"check", "none.kumi"}, {"none.kumi: "}},
      {"a model that is a folder", {}, {"check", "folder"}, {"folder: "}},
      {"no such module", {}, {"check", "none.pb"}, {"none.pb: "}},
      {"no such recipe or module", {}, {"check", "none.txtpb"}, {"none.txtpb: "}},
      {"no such run", {}, {"generate", "none", "prompt"}, {"none: there is no such run or checkpoint"}},
      {"a run without checkpoints", {}, {"generate", "folder", "prompt"}, {"folder: there is no checkpoint"}},
      {"a run that is a file", {}, {"generate", "file", "prompt"}, {"file: "}},
      {"no such tokenizer", {}, {"tokenizer", "encode", "none.model", "x"}, {"none.model: "}},
      {"no tokenizer", {}, {"tokenizer", "encode", "text.txt", "x"}, {"text.txt: "}},
      {"tokenizer of no text",
       {},
       {"tokenizer", "train", "none.txt", "--vocab-size", "300", "--out", "t.model"},
       {"none.txt"}},
      {"tokenizer into no folder",
       {},
       {"tokenizer", "train", "text.txt", "--vocab-size", "300", "--out", "none/t.model"},
       {"none/t.model: cannot write the file"}},
      {"tokenizer of an empty text",
       {},
       {"tokenizer", "train", "file", "--vocab-size", "300", "--out", "t.model"},
       {"there is no text"}},
  });
}

// ---------------------------------------------------------------------------------- weights and feeds

// The bytes of a safetensors file.
class Tensors {
 public:
  Tensors& i32(const std::string& name, const std::vector<int64_t>& shape, std::vector<int32_t> values) {
    return add(name, DType::I32, shape, values.data(), values.size() * 4);
  }
  Tensors& f32(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    const std::vector<float> values(static_cast<size_t>(count), 0.5f);
    return add(name, DType::F32, shape, values.data(), values.size() * 4);
  }
  Tensors& without(const std::string& name) {
    std::erase_if(tensors_, [&](const auto& tensor) { return tensor.first.name == name; });
    return *this;
  }
  std::string bytes() const {
    const TemporaryFolder folder;
    std::vector<TensorToWrite> tensors;
    for (const auto& [tensor, data] : tensors_) {
      tensors.push_back(tensor);
      tensors.back().data = data.data();
    }
    write_safetensors(folder / "t.safetensors", tensors);
    return read_file(folder / "t.safetensors");
  }

 private:
  Tensors& add(const std::string& name, DType dtype, const std::vector<int64_t>& shape, const void* data,
               size_t bytes) {
    without(name);
    tensors_.push_back({{name, dtype, shape, nullptr}, std::string(static_cast<const char*>(data), bytes)});
    return *this;
  }
  std::vector<std::pair<TensorToWrite, std::string>> tensors_;
};

TEST_F(BadInputs, Safetensors) {
  const auto weights = [] {
    Tensors all;
    all.f32("embed", {16, 8}).f32("head", {16, 8});
    for (const char* layer : {"layers.0.", "layers.1."})
      all.f32(std::string(layer) + "up", {24, 8}).f32(std::string(layer) + "down", {8, 24});
    return all;
  };
  const auto feed = [] {
    return Tensors().i32("tokens", {1, 4}, {0, 1, 2, 15}).i32("labels", {1, 4}, {1, 2, 15, -100});
  };
  const auto bad = [&](const char* name, const std::string& w, const std::string& f,
                       std::vector<std::string> expected, std::vector<std::string> more = {}) {
    std::vector<std::string> command = {"run",    "m.kumi",        "--weights", "w.safetensors",
                                        "--feed", "f.safetensors", "--out",     "o.safetensors"};
    command.insert(command.end(), more.begin(), more.end());
    return BadInput{
        name, {{"w.safetensors", w}, {"f.safetensors", f}}, std::move(command), std::move(expected)};
  };
  common_ = {{"m.kumi", kModel}, {"folder/keep", ""}};
  const std::string w = weights().bytes(), f = feed().bytes();
  const auto with_header = [](uint64_t length, const std::string& header) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return bytes + header;
  };
  run({
      bad("empty", "", f, {"w.safetensors: "}),
      bad("four bytes", "abcd", f, {"w.safetensors: "}),
      bad("text", "this is not a safetensors file at all\n", f, {"w.safetensors: "}),
      bad("absurd header", with_header(~uint64_t{0}, "{}"), f, {"w.safetensors: "}),
      bad("no JSON", with_header(8, "{\"a\": [}"), f, {"w.safetensors: "}),
      bad("deep JSON", with_header(2000000, times(2000000, "[")), f, {"w.safetensors: "}),
      bad("cut off", w.substr(0, w.size() - 1), f, {"w.safetensors: ", "truncated"}),
      bad("header cut off", w.substr(0, 100), f, {"w.safetensors: "}),
      bad("bytes too many", w + "x", f, {"w.safetensors: "}),
      bad("missing weight", weights().without("layers.1.up").bytes(), f,
          {"w.safetensors: the tensor layers.1.up is missing"}),
      bad("weight too many", weights().f32("layers.2.up", {24, 8}).bytes(), f,
          {"w.safetensors: the model has no weight layers.2.up"}),
      bad("weights of another model", Tensors().f32("model.norm.weight", {8}).bytes(), f,
          {"w.safetensors: ", "of another model?"}),
      bad("wrong shape", weights().f32("head", {8, 16}).bytes(), f,
          {"w.safetensors: the tensor head has shape [8, 16]", "[vocab (16), hidden (8)]"}),
      bad("wrong type", weights().i32("head", {16, 8}, std::vector<int32_t>(128)).bytes(), f,
          {"w.safetensors: the tensor head has elements of type i32"}),
      bad("missing input", w, feed().without("labels").bytes(),
          {"f.safetensors: there is no tensor for the input 'labels'"}),
      bad("misspelt input", w, feed().without("labels").i32("lables", {1, 4}, {1, 1, 1, 1}).bytes(),
          {"f.safetensors: ", "did you mean 'lables'?"}),
      bad("id too large", w, feed().i32("tokens", {1, 4}, {0, 1, 16, 2}).bytes(),
          {"the input 'tokens' holds 16 at position [0, 2]", "from 0 to 15"}),
      bad("negative id", w, feed().i32("tokens", {1, 4}, {0, 1, -1, 2}).bytes(),
          {"the input 'tokens' holds -1 at position [0, 2]"}),
      bad("label out of range", w, feed().i32("labels", {1, 4}, {0, 1, -99, 2}).bytes(),
          {"the input 'labels' holds -99 at position [0, 2]"}),
      bad("floating ids", w, feed().f32("tokens", {1, 4}).bytes(), {"'tokens'", "f32[1, 4]"}),
      bad("too few axes", w, feed().i32("tokens", {4}, {0, 1, 2, 3}).bytes(),
          {"f.safetensors: the tensor 'tokens' is i32[4]"}),
      bad("different batches", w, feed().i32("labels", {2, 4}, std::vector<int32_t>(8)).bytes(),
          {"'batch'", "[1, 4]", "[2, 4]"}),
      bad("steps without index", w, feed().i32("tokens", {3, 1, 4}, std::vector<int32_t>(12)).bytes(),
          {"f.safetensors: ", "--index 0 to 2"}),
      bad("index beyond the steps", w, feed().i32("tokens", {3, 1, 4}, std::vector<int32_t>(12)).bytes(),
          {"f.safetensors: ", "--index from 0 to 2, not 3"}, {"--index", "3"}),
      bad("index without steps", w, f, {"f.safetensors", "--index 0"}, {"--index", "0"}),
      bad("no tokens at all", w, feed().i32("tokens", {0, 4}, {}).i32("labels", {0, 4}, {}).bytes(),
          {"tokens"}),
      bad("size that disagrees", w, f, {"'batch'", "--size batch=2"}, {"--size", "batch=2"}),
      {"no such weights",
       {{"f.safetensors", f}},
       {"run", "m.kumi", "--weights", "none.safetensors", "--feed", "f.safetensors", "--out",
        "o.safetensors"},
       {"none.safetensors: "}},
      {"weights are a folder",
       {{"f.safetensors", f}},
       {"run", "m.kumi", "--weights", "folder", "--feed", "f.safetensors", "--out", "o.safetensors"},
       {"folder: "}},
      {"no feed",
       {{"w.safetensors", w}},
       {"run", "m.kumi", "--weights", "w.safetensors", "--out", "o.safetensors"},
       {"'tokens'", "--feed"}},
      {"out into no folder",
       {{"w.safetensors", w}, {"f.safetensors", f}},
       {"run", "m.kumi", "--weights", "w.safetensors", "--feed", "f.safetensors", "--out",
        "none/o.safetensors"},
       {"none/o.safetensors: cannot write the file"}},
      {"out is a folder",
       {{"w.safetensors", w}, {"f.safetensors", f}},
       {"run", "m.kumi", "--weights", "w.safetensors", "--feed", "f.safetensors", "--out", "folder"},
       {"folder: cannot write the file"}},
      {"a recipe as model",
       {{"r.txtpb", kRecipe}, {"f.safetensors", f}},
       {"run", "r.txtpb", "--feed", "f.safetensors", "--out", "o.safetensors"},
       {"r.txtpb: "}},
  });
}

TEST_F(BadInputs, RecordedBatches) {
  const auto batches = [](const char* name, const Tensors& tensors, std::vector<std::string> expected,
                          std::vector<std::string> more = {}) {
    BadInput bad = bad_recipe(name, "model { path: \"m.kumi\" }\ndata { batches: \"b.safetensors\" }\n",
                              std::move(expected), std::move(more));
    bad.files.emplace_back("b.safetensors", tensors.bytes());
    return bad;
  };
  const auto good = [] {
    return Tensors()
        .i32("tokens", {2, 3, 4}, std::vector<int32_t>(24, 3))
        .i32("labels", {2, 3, 4}, std::vector<int32_t>(24, 5));
  };
  common_ = {{"m.kumi", kModel}, {"init.safetensors", Tensors().f32("embed", {16, 8}).bytes()}};
  run({
      batches("no labels", good().without("labels"), {"b.safetensors: ", "labels"}),
      batches("two axes", good().i32("tokens", {2, 12}, std::vector<int32_t>(24)),
              {"b.safetensors: ", "[2, 12]", "i32 [steps, batch, seq]"}),
      batches("floats", good().f32("tokens", {2, 3, 4}), {"b.safetensors: ", "f32"}),
      batches("shapes differ", good().i32("labels", {2, 4, 3}, std::vector<int32_t>(24)),
              {"b.safetensors: ", "different shapes"}),
      batches("id too large", good().i32("tokens", {2, 3, 4}, std::vector<int32_t>(24, 16)),
              {"b.safetensors: tensor 'tokens' has the id 16 at element 0"}),
      batches("label out of range", good().i32("labels", {2, 3, 4}, std::vector<int32_t>(24, -1)),
              {"b.safetensors: tensor 'labels' has the id -1"}),
      batches("too few", good(), {"b.safetensors: the data ends before step 3"}, {"--set", "steps=3"}),
      batches("too few for accumulation", good(), {"b.safetensors: the data ends before step 2"},
              {"--set", "steps=2", "--set", "accumulation=2"}),
      batches("batch that does not divide", good(), {"b.safetensors: ", "batch of 3"},
              {"--set", "data.batch_size=2"}),
      batches("another length", good(), {"b.safetensors: the sequences have 4 tokens"},
              {"--set", "data.sequence_length=5"}),
      batches("weights that do not fit", good(), {"init.safetensors: ", "missing"},
              {"--set", "init_from=init.safetensors"}),
      batches("weights that are not there", good(), {"none.safetensors: "},
              {"--set", "init_from=none.safetensors"}),
      batches("model without tokens", good(), {"'seq'"}, {"--model", models("mlp.kumi")}),
      {"no such batches",
       {{"r.txtpb", "model { path: \"m.kumi\" }\ndata { batches: \"none.safetensors\" }\n"}},
       {"train", "r.txtpb"},
       {"none.safetensors: "}},
  });
}

// ------------------------------------------------------------------------------------------- protobuf

TEST_F(BadInputs, Protobuf) {
  const TemporaryFolder folder;
  folder.write("m.kumi", kModel);
  for (const char* file : {"m.pb", "m.txtpb", "planned.pb", "planned.txtpb"}) {
    std::vector<std::string> command = {"dump", "m.kumi", "-o", file};
    if (std::string(file).starts_with("planned")) command.insert(command.end(), {"--after", "memory"});
    const CommandResult result = run_kumi(command, {.directory = folder.path()});
    ASSERT_EQ(result.status, 0) << result.description();
  }
  const std::string pb = read_file(folder / "m.pb"), txtpb = read_file(folder / "m.txtpb"),
                    planned = read_file(folder / "planned.txtpb");
  const auto binary = [](const char* name, const std::string& bytes, std::vector<std::string> expected = {}) {
    expected.emplace_back("bad.pb: ");
    return BadInput{name, {{"bad.pb", bytes}}, {"check", "bad.pb"}, std::move(expected)};
  };
  const auto text = [](const char* name, const std::string& contents, std::vector<std::string> expected) {
    expected.emplace_back("bad.txtpb");
    return BadInput{name, {{"bad.txtpb", contents}}, {"check", "bad.txtpb"}, std::move(expected)};
  };
  std::string flipped = pb;
  for (size_t i = 100; i < flipped.size(); i += 101) flipped[i] = static_cast<char>(flipped[i] ^ 0x55);
  run({
      binary("empty", ""),
      binary("text", kModel),
      binary("zeros", std::string(100, '\0')),
      binary("cut off", pb.substr(0, pb.size() / 2)),
      binary("flipped", flipped),
      binary("absurd length", "\x0a\xff\xff\xff\xff\x0fxyz"),
      binary("deep", times(100000, "\x0a\x7f")),
      {"parameters are fixed",
       {{"m.pb", pb}},
       {"check", "m.pb", "--set", "model.hidden=4"},
       {"m.pb: ", "'hidden' cannot be set"}},
      {"another size than planned",
       {{"m.pb", read_file(folder / "planned.pb")}},
       {"dump", "m.pb", "--size", "batch=7", "--after", "memory"},
       {"'batch'"}},
      text("another format", replaced(txtpb, "format: 1", "format: 2"), {"format"}),
      text("unknown field", replaced(txtpb, "nodes {", "knots {"), {"knots"}),
      text("operand out of range", replaced(txtpb, "operands: [0, 2]", "operands: [0, 9999]"), {"9999"}),
      text("negative result", replaced(txtpb, "results: [0]", "results: [-2]"), {"-2"}),
      text("unknown op", replaced(txtpb, "op: \"embedding\"", "op: \"embeding\""),
           {"embeding", "did you mean 'embedding'?"}),
      text("unknown type", replaced(txtpb, "dtype: I32", "dtype: I33"), {"I33"}),
      text("not closed", txtpb.substr(0, txtpb.size() - 10), {}),
      text("value of another type", replaced(planned, "dtype: F32", "dtype: I32"), {}),
      text("state that is not there",
           replaced(planned, "states {", "states { name: \"x\" kind: WEIGHT } states {"), {}),
      text("empty", "", {}),
  });
}

// ----------------------------------------------------------------------------------------- checkpoints

TEST_F(BadInputs, Checkpoints) {
  const TemporaryFolder folder;
  const CommandResult trained = run_kumi({"train", write_tiny_recipe(folder).string(), "--set", "steps=2"});
  ASSERT_EQ(trained.status, 0) << trained.description();
  const fs::path checkpoint = folder / "run" / "checkpoints" / "step-00000002";
  for (const fs::directory_entry& entry : fs::directory_iterator(checkpoint))
    common_.emplace_back("c/" + entry.path().filename().string(), read_file(entry.path()));
  const std::string description = read_file(checkpoint / "training.json");
  run({
      {"cut off weights",
       {{"c/model.safetensors", "abc"}},
       {"generate", "c", "the"},
       {"c/model.safetensors: the file is damaged"}},
      {"another tokenizer",
       {{"c/tokenizer.model", "abc"}},
       {"generate", "c", "the"},
       {"c/tokenizer.model: the file is damaged"}},
      {"description cut off",
       {{"c/training.json", description.substr(0, 200)}},
       {"generate", "c", "the"},
       {"c/training.json: "}},
      {"description of another step",
       {{"c/training.json", replaced(description, "\"step\": 2", "\"step\": 3")}},
       {"generate", "c", "the"},
       {"c/training.json: the file is damaged"}},
      {"description is a list", {{"c/training.json", "[]"}}, {"generate", "c", "the"}, {"c/training.json: "}},
      {"deep description",
       {{"c/training.json", times(1000000, "[")}},
       {"generate", "c", "the"},
       {"c/training.json: "}},
      {"prompt is no UTF-8", {}, {"generate", "c", "the \xFF"}, {"the prompt is not UTF-8 at byte 4"}},
      {"negative temperature", {}, {"generate", "c", "the", "--temperature", "-1"}, {"temperature"}},
      {"temperature is no number", {}, {"generate", "c", "the", "--temperature", "nan"}, {"temperature"}},
      {"top-p of nothing", {}, {"generate", "c", "the", "--top-p", "0"}, {"top_p"}},
      {"top-p above one", {}, {"generate", "c", "the", "--top-p", "1.5"}, {"top_p"}},
      {"no such device", {}, {"generate", "c", "the", "--device", "gpuu"}, {"the device 'gpuu'"}},
      {"id out of the vocabulary",
       {},
       {"tokenizer", "decode", "c/tokenizer.model", "1", "100000"},
       {"100000"}},
      {"id is no number",
       {},
       {"tokenizer", "decode", "c/tokenizer.model", "1", "two"},
       {"'two' is not a token id"}},
      {"text is no UTF-8", {}, {"tokenizer", "encode", "c/tokenizer.model", "\xFF"}, {"UTF-8"}},
  });
}

}  // namespace
}  // namespace kumi::testing
