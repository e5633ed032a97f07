// input, read and write: what goes in comes out, and when a state changes.
#include <gtest/gtest.h>

#include "ops/all_ops.h"
#include "tests/ops/device_run.h"

namespace kumi {
namespace {

using testing::DeviceRun;

constexpr DType kDTypes[] = {DType::F32, DType::BF16, DType::F16, DType::F64,
                             DType::I32, DType::I64,  DType::U8,  DType::BOOL};

class StateOps : public ::testing::Test {
 protected:
  void SetUp() override {
    register_all_ops();
    module_.name = "states";
    graph_.name = "forward";
  }

  ValueId input(const std::string& name, const Type& type) {
    return builder_.call("input", {}, {{"name", name}, {"dtype", type.dtype}, {"shape", type.shape}});
  }
  ValueId read(const std::string& state, const Type& type) {
    if (module_.find_state(state) == nullptr) module_.states.push_back({state, State::kWeight, type, {}, {}});
    return builder_.call("read", {}, {{"state", state}, {"dtype", type.dtype}, {"shape", type.shape}});
  }
  void write(const std::string& state, ValueId value) {
    builder_.build("write", {value}, {{"state", state}});
  }
  void output(const std::string& name, ValueId value) { graph_.outputs.push_back({name, value}); }

  DeviceRun& run() {
    module_.graphs.push_back(std::move(graph_));
    return run_.emplace(std::move(module_));
  }

  static ReferenceTensor numbers(DType dtype, const std::vector<double>& data) {
    return {dtype, {static_cast<int64_t>(data.size())}, data};
  }

  Module module_;
  Graph graph_;
  GraphBuilder builder_{graph_};
  std::optional<DeviceRun> run_;
};

TEST_F(StateOps, InputsComeOutAgain) {
  for (DType dtype : kDTypes) output(to_string(dtype), input(to_string(dtype), {dtype, {Dim(3)}}));
  testing::Tensors feeds;
  for (DType dtype : kDTypes) feeds[to_string(dtype)] = numbers(dtype, {0, 1, 1});
  testing::Tensors found = run().run("forward", feeds);
  for (DType dtype : kDTypes) EXPECT_EQ(found.at(to_string(dtype)).data, (std::vector<double>{0, 1, 1}));
}

TEST_F(StateOps, StatesOfEveryTypeAreCopied) {
  for (DType dtype : kDTypes) {
    Type type{dtype, {Dim(3)}};
    std::string name = to_string(dtype);
    ValueId source = read(name, type);
    read(name + ".copy", type);
    write(name + ".copy", source);
  }
  DeviceRun& device = run();
  for (DType dtype : kDTypes) device.write_state(to_string(dtype), numbers(dtype, {1, 0, 1}));
  device.run("forward", {});
  for (DType dtype : kDTypes)
    EXPECT_EQ(device.read_state(to_string(dtype) + std::string(".copy")).data, (std::vector<double>{1, 0, 1}))
        << to_string(dtype);
}

TEST_F(StateOps, ConstantsOfEveryTypeAreWritten) {
  for (DType dtype : kDTypes) {
    Type type{dtype, {Dim(int64_t{3} + static_cast<int64_t>(dtype))}};
    read(to_string(dtype), type);
    write(to_string(dtype), builder_.constant(1, type.shape, dtype));
  }
  DeviceRun& device = run();
  device.run("forward", {});
  for (DType dtype : kDTypes)
    for (double x : device.read_state(to_string(dtype)).data) EXPECT_EQ(x, 1) << to_string(dtype);
}

TEST_F(StateOps, ACounterCounts) {
  Type type{DType::I32, {}};
  ValueId next = builder_.add(read("step", type), builder_.constant(1, {}, DType::I32));
  write("step", next);
  DeviceRun& device = run();
  for (int i = 1; i <= 3; ++i) {
    device.run("forward", {});
    EXPECT_EQ(device.read_state("step").data, std::vector<double>{static_cast<double>(i)});
  }
}

// A read gives the old value, wherever it stands.
TEST_F(StateOps, TheOldValueIsReadAfterTheWrite) {
  Type type{DType::F32, {Dim(4)}};
  ValueId old = read("a", type);
  write("a", builder_.multiply(old, 2.0));
  output("old", old);
  output("view", builder_.reshape(old, {Dim(2), Dim(2)}));
  output("later", builder_.call("softmax", {builder_.reshape(old, {Dim(2), Dim(2)})}));
  DeviceRun& device = run();
  device.write_state("a", numbers(DType::F32, {1, 1, 3, 3}));
  testing::Tensors found = device.run("forward", {});
  EXPECT_EQ(found.at("old").data, (std::vector<double>{1, 1, 3, 3}));
  EXPECT_EQ(found.at("view").data, (std::vector<double>{1, 1, 3, 3}));
  EXPECT_EQ(found.at("later").data, (std::vector<double>{0.5, 0.5, 0.5, 0.5}));
  EXPECT_EQ(device.read_state("a").data, (std::vector<double>{2, 2, 6, 6}));
}

// One kernel reads the old value of b and computes the new one in its place.
TEST_F(StateOps, AKernelReadsWhatItReplaces) {
  Type type{DType::F32, {Dim(3)}};
  ValueId a = read("a", type), b = read("b", type);
  ValueId negative = builder_.call("neg", {a});
  write("b", negative);
  output("difference", builder_.subtract(negative, b));
  DeviceRun& device = run();
  device.write_state("a", numbers(DType::F32, {1, 2, 3}));
  device.write_state("b", numbers(DType::F32, {10, 20, 30}));
  EXPECT_EQ(device.run("forward", {}).at("difference").data, (std::vector<double>{-11, -22, -33}));
  EXPECT_EQ(device.read_state("b").data, (std::vector<double>{-1, -2, -3}));
}

TEST_F(StateOps, TwoStatesChangePlaces) {
  Type type{DType::F32, {Dim(2)}};
  ValueId a = read("a", type), b = read("b", type);
  write("a", b);
  write("b", a);
  DeviceRun& device = run();
  device.write_state("a", numbers(DType::F32, {1, 2}));
  device.write_state("b", numbers(DType::F32, {3, 4}));
  device.run("forward", {});
  EXPECT_EQ(device.read_state("a").data, (std::vector<double>{3, 4}));
  EXPECT_EQ(device.read_state("b").data, (std::vector<double>{1, 2}));
}

}  // namespace
}  // namespace kumi
