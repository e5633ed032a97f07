// Protobuf: nothing is lost, and nothing that is damaged gets through or crashes.
#include "graph/serialize.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "graph/pipeline.h"
#include "tests/graph/small_model.h"

namespace kumi {
namespace {

using testing::small_model;

PlanOptions train_options() {
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = {{"seq", 5}};
  options.optimizer.accumulation = 2;
  options.optimizer.warmup_steps = 3;
  options.optimizer.decay_steps = 10;
  return options;
}

// Names of sizes take no part in ==, so the serialized forms are compared as well.
void expect_round_trips(const Module& module) {
  std::string binary = to_binary(module), text = to_text_format(module);
  Module from_pb = from_binary(binary, "m.pb"), from_txt = from_text_format(text, "m.txtpb");
  EXPECT_TRUE(from_pb == module);
  EXPECT_TRUE(from_txt == module);
  EXPECT_EQ(to_binary(from_pb), binary);
  EXPECT_EQ(to_text_format(from_txt), text);
  EXPECT_EQ(to_binary(from_txt), binary);
}

template <typename Function>
std::string message_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Serialize, RoundTripBeforeAndAfterEveryPass) {
  expect_round_trips(small_model());
  for (Goal goal : {Goal::kForward, Goal::kGradient, Goal::kTrain}) {
    PlanOptions options = train_options();
    options.goal = goal;
    run_pipeline(small_model(), options, "",
                 [](const Pass&, const Module& module, double) { expect_round_trips(module); });
  }
}

TEST(Serialize, KeepsNamesAndPolynomials) {
  Module module = small_model();
  Dim batch = Dim::symbol("batch"), seq = Dim::symbol("seq");
  Dim odd = Dim::named("日本", Dim(3) * batch * batch * seq - Dim(7) * seq + Dim(1));
  module.parameters.emplace_back("odd", odd);
  module.parameters.emplace_back("list", Shape{odd, Dim(-1), Dim::named("n", 4)});
  module.parameters.emplace_back("text", std::string("\"quoted\"\n組"));
  module.parameters.emplace_back("third", 1.0 / 3);
  module.parameters.emplace_back("flag", true);
  module.parameters.emplace_back("type", DType::BF16);
  expect_round_trips(module);
  Module back = from_binary(to_binary(module), "m.pb");
  EXPECT_EQ(std::get<Dim>(back.parameters[3].second).to_string(), odd.to_string());
  EXPECT_NE(to_text_format(module).find("日本"), std::string::npos);
}

TEST(Serialize, ADumpResumes) {
  PlanOptions options = train_options();
  std::string direct = to_binary(run_pipeline(small_model(), options));
  for (const char* pass : {"infer", "autodiff", "optimizer", "fuse", "schedule"}) {
    Module dumped = from_text_format(to_text_format(run_pipeline(small_model(), options, pass)), "m.txtpb");
    EXPECT_EQ(to_binary(run_pipeline(std::move(dumped), options)), direct) << "resumed after " << pass;
  }
}

TEST(Serialize, SyntaxErrorsCarryLineAndColumn) {
  register_all_ops();
  std::string message =
      message_of([] { from_text_format("format: 1\nname: \"x\"\nstates { nam: 1 }\n", "m.txtpb"); });
  EXPECT_NE(message.find("m.txtpb:3:"), std::string::npos) << message;
  EXPECT_NE(message.find("states { nam: 1 }"), std::string::npos) << message;
}

// Each replaces a piece of the small model's text format and must be refused with these words.
struct Damage {
  const char* from;
  const char* to;
  const char* message;
};

TEST(Serialize, ValuesAreCheckedAndErrorsNameTheirPlace) {
  const Damage kTable[] = {
      {"format: 1", "format: 2", "format: the format is 2"},
      {"dtype: F32", "dtype: DTYPE_UNSPECIFIED", "the element type is missing"},
      {"kind: WEIGHT", "kind: KIND_UNSPECIFIED", "states[0].kind"},
      {"kind: NORMAL", "kind: 77", ""},
      {"operands: [0, 2]", "operands: [0, 2000]", "there is no value 2000"},
      {"operands: [0, 2]", "operands: [0, -2]", "there is no value -2"},
      {"operands: [0, 2]", "operands: [0, 9]", "used before it is defined"},
      {"operands: [0, 2]", "operands: [0, -1]", "embedding"},
      {"operands: [0, 2]", "operands: [0]", "embedding"},
      {"results: [1]", "results: [0]", "already the result of nodes[0]"},
      {"op: \"embedding\"", "op: \"embeding\"", "did you mean 'embedding'?"},
      {"symbols: \"batch\"", "symbols: \"bach\"", "did you mean 'batch'?"},
      {"symbols: \"batch\"", "symbols: \"1 + 2\"", "is not an identifier"},
      {"coefficient: 1", "coefficient: 0", "the coefficient of a term is 0"},
      {"coefficient: 1", "coefficient: 9223372036854775807 symbols: \"batch\"", ""},
      {"{\n      constant: 11", "{\n      constant: 12", "embed.weight"},
      {"{\n      constant: 11", "{\n      constant: -11", "1 or more"},
      {"{\n      constant: 11", "{\n      constant: 9223372036854775807", "64 bits"},
      {"name: \"embed.weight\"", "name: \"\"", "a state is named"},
      {"name: \"embed.weight\"", "name: \"embed.wight\"", "did you mean 'embed.wight'?"},
      {"float_value: 1e-06", "float_value: nan", "not a number"},
      {"float_value: 1e-06", "", "has no value"},
      {"line: 1", "line: -1", "negative"},
  };
  std::string text = to_text_format(small_model());
  for (const Damage& damage : kTable) {
    std::string damaged = text;
    size_t at = damaged.find(damage.from);
    ASSERT_NE(at, std::string::npos) << damage.from;
    damaged.replace(at, std::string(damage.from).size(), damage.to);
    std::string message = message_of([&] { from_text_format(damaged, "m.txtpb"); });
    EXPECT_NE(message, "no error") << damage.to;
    EXPECT_NE(message.find(damage.message), std::string::npos) << damage.to << "\n" << message;
    EXPECT_NE(message.find("m.txtpb"), std::string::npos) << damage.to << "\n" << message;
  }
}

TEST(Serialize, SemanticErrorsPointIntoTheText) {
  std::string text = to_text_format(small_model());
  size_t at = text.find("operands: [0, 2]");
  ASSERT_NE(at, std::string::npos);
  text.replace(at, 16, "operands: [0, 2000]");
  int line =
      1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
  std::string message = message_of([&] { from_text_format(text, "m.txtpb"); });
  EXPECT_EQ(message.find(concat("m.txtpb:", line, ":")), 0u) << message;
  EXPECT_NE(message.find("graphs[0].nodes[3].operands[1]: there is no value 2000"), std::string::npos)
      << message;
}

TEST(Serialize, FilesThatCannotBeRead) {
  EXPECT_NE(message_of([] { read_module("/nonexistent/m.pb"); }).find("No such file"), std::string::npos);
  EXPECT_NE(message_of([] { read_module("m.onnx"); }).find(".txtpb"), std::string::npos);
  std::filesystem::path folder = std::filesystem::temp_directory_path() / "kumi_serialize_test.pb";
  std::filesystem::create_directory(folder);
  EXPECT_NE(message_of([&] { read_module(folder); }), "no error");
  std::filesystem::remove(folder);
  std::ofstream(folder) << "this is text";
  EXPECT_NE(message_of([&] { read_module(folder); }).find("damaged"), std::string::npos);
  std::ofstream(folder, std::ios::trunc) << to_binary(small_model());
  EXPECT_TRUE(read_module(folder) == small_model());
  std::filesystem::remove(folder);
}

// Damaged bytes either give a valid module or an Error, which is what run_pipeline asks for.
TEST(SerializeFuzz, DamagedBinary) {
  const Module originals[] = {small_model(), run_pipeline(small_model(), train_options())};
  int accepted = 0;
  for (const Module& original : originals) {
    const std::string bytes = to_binary(original);
    for (uint32_t seed = 1; seed <= 1500; ++seed) {
      SCOPED_TRACE(concat("seed ", seed));
      std::mt19937 random(seed);
      std::string damaged = bytes;
      if (seed % 10 == 0) damaged.resize(random() % damaged.size());
      for (uint32_t i = 0; i < 1 + seed % 4 && !damaged.empty(); ++i) {
        size_t at = random() % damaged.size();
        switch (random() % 4) {
          case 0:
            damaged[at] = static_cast<char>(random());
            break;
          case 1:
            damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
            break;
          case 2:
            damaged.erase(at, 1 + random() % 8);
            break;
          case 3:
            damaged.insert(at, bytes.substr(random() % bytes.size(), random() % 16));
            break;
        }
      }
      try {
        Module module = from_binary(damaged, "fuzz.pb");
        ++accepted;
        run_pipeline(module, train_options());
      } catch (const Error&) {
      }
    }
  }
  RecordProperty("accepted", accepted);
}

TEST(SerializeFuzz, DamagedText) {
  const std::string text = to_text_format(small_model());
  const std::string replacements[] = {"-1",  "0",   "1",   "99999999999999999999", "\"", "{", "}",
                                      "nan", "F16", "\x80"};
  for (uint32_t seed = 1; seed <= 500; ++seed) {
    SCOPED_TRACE(concat("seed ", seed));
    std::mt19937 random(seed);
    std::string damaged = text;
    for (int i = 0; i < 2; ++i)
      damaged.replace(random() % damaged.size(), random() % 3,
                      replacements[random() % std::size(replacements)]);
    try {
      run_pipeline(from_text_format(damaged, "fuzz.txtpb"), train_options());
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace kumi
