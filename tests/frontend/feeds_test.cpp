// Inputs from a file: by name, one step of several, and the free sizes that their shapes give.
#include "frontend/feeds.h"

#include <gtest/gtest.h>

#include "graph/pipeline.h"
#include "tests/graph/small_model.h"
#include "tests/support/temporary_folder.h"

namespace kumi {
namespace {

class FeedsTest : public ::testing::Test {
 protected:
  using Shape64 = std::vector<int64_t>;

  // A file of i32 tensors that count from 0.
  SafetensorsFile file(const std::vector<std::pair<std::string, Shape64>>& shapes) {
    std::vector<int32_t> numbers(1000);
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int32_t>(i);
    std::vector<TensorToWrite> tensors;
    for (const auto& [name, shape] : shapes) tensors.push_back({name, DType::I32, shape, numbers.data()});
    write_safetensors(folder_ / "feed.safetensors", tensors);
    return SafetensorsFile(folder_ / "feed.safetensors");
  }

  std::string failure(const std::vector<std::pair<std::string, Shape64>>& shapes,
                      std::optional<int64_t> index = std::nullopt,
                      const std::map<std::string, int64_t>& given = {}) {
    try {
      const SafetensorsFile tensors = file(shapes);
      sizes_from_feeds(graph(), feeds_from_file(graph(), tensors, index), given);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  const Graph& graph() const { return module_.graphs[0]; }

  const Module module_ = testing::small_model();  // tokens, labels: i32[batch, seq]
  testing::TemporaryFolder folder_;
};

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST_F(FeedsTest, TakesTensorsByName) {
  const SafetensorsFile tensors = file({{"other", {5}}, {"labels", {2, 3}}, {"tokens", {2, 3}}});
  const std::vector<Feed> feeds = feeds_from_file(graph(), tensors, std::nullopt);
  ASSERT_EQ(feeds.size(), 2u);
  EXPECT_EQ(feeds[0].name, "tokens");
  EXPECT_EQ(feeds[0].shape, (Shape64{2, 3}));
  EXPECT_EQ(feeds[0].data, tensors.tensor("tokens").data);
  EXPECT_EQ(sizes_from_feeds(graph(), feeds, {}), (std::map<std::string, int64_t>{{"batch", 2}, {"seq", 3}}));
}

TEST_F(FeedsTest, PicksAStep) {
  const SafetensorsFile tensors = file({{"tokens", {4, 2, 3}}, {"labels", {2, 3}}});
  const std::vector<Feed> feeds = feeds_from_file(graph(), tensors, 3);
  EXPECT_EQ(feeds[0].shape, (Shape64{2, 3}));
  EXPECT_EQ(static_cast<const std::byte*>(feeds[0].data) - tensors.tensor("tokens").data, 3 * 6 * 4);
  EXPECT_EQ(feeds[1].data, tensors.tensor("labels").data);
}

TEST_F(FeedsTest, SaysWhatIsWrongWithTensors) {
  expect_contains(failure({{"token", {2, 3}}, {"labels", {2, 3}}}), "did you mean 'token'?");
  expect_contains(failure({{"tokens", {6}}, {"labels", {2, 3}}}), "the tensor 'tokens' is i32[6]");
  expect_contains(failure({{"tokens", {4, 2, 3}}, {"labels", {4, 2, 3}}}), "--index 0 to 3");
  expect_contains(failure({{"tokens", {4, 2, 3}}, {"labels", {4, 2, 3}}}, 4), "--index from 0 to 3, not 4");
  expect_contains(failure({{"tokens", {4, 2, 3}}, {"labels", {4, 2, 3}}}, -1), "--index from 0 to 3, not -1");
  expect_contains(failure({{"tokens", {2, 3}}, {"labels", {2, 3}}}, 0), "no tensor has an axis of steps");
}

TEST_F(FeedsTest, ConflictingSizesNameBothTensors) {
  const std::string message = failure({{"tokens", {2, 3}}, {"labels", {2, 4}}});
  expect_contains(message, "the size 'seq' is 3 by the tensor 'tokens' [2, 3]");
  expect_contains(message, "4 by the tensor 'labels' [2, 4]");
  expect_contains(failure({{"tokens", {2, 3}}, {"labels", {2, 3}}}, std::nullopt, {{"batch", 5}}),
                  "the size 'batch' is 5 by --size batch=5, but 2 by the tensor 'tokens' [2, 3]");
}

TEST_F(FeedsTest, ChecksTypesOfThePlannedGraph) {
  PlanOptions options;
  options.sizes = {{"batch", 2}, {"seq", 3}};
  const Module planned = run_pipeline(module_, options, "infer");
  const auto feeds = [](DType dtype, const Shape64& shape) {
    return std::vector<Feed>{{"tokens", dtype, shape, nullptr}, {"labels", DType::I32, {2, 3}, nullptr}};
  };
  EXPECT_NO_THROW(check_feeds(planned.graphs[0], feeds(DType::I32, {2, 3})));
  EXPECT_THROW(check_feeds(planned.graphs[0], feeds(DType::I64, {2, 3})), Error);
  EXPECT_THROW(check_feeds(planned.graphs[0], feeds(DType::I32, {2, 4})), Error);
}

TEST(Feeds, SolvesForASizeInAPolynomial) {
  register_all_ops();
  Graph graph;
  GraphBuilder builder(graph);
  const Dim n = Dim::symbol("n"), m = Dim::symbol("m");
  builder.call(
      "input", {},
      {{"name", std::string("x")}, {"dtype", DType::F32}, {"shape", Shape{Dim(2) * n + Dim(1), n * m, 7}}});
  const auto sizes = [&](const std::vector<int64_t>& shape) {
    return sizes_from_feeds(graph, {{"x", DType::F32, shape, nullptr}}, {});
  };
  EXPECT_EQ(sizes({9, 12, 7}), (std::map<std::string, int64_t>{{"n", 4}}));
  // What does not fit is left to the check of the whole shape.
  EXPECT_TRUE(sizes({8, 12, 7}).empty());
  EXPECT_TRUE(sizes({1, 12, 7}).empty());
}

}  // namespace
}  // namespace kumi
