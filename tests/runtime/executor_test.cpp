// The executor: buffers bound to places, fed values checked before anything runs, states, outputs,
// timing; with a fake device for what it does, with the CPU for what it computes.
#include "runtime/executor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "graph/pipeline.h"
#include "tests/graph/evaluate.h"
#include "tests/graph/small_model.h"
#include "tests/support/fake_device.h"
#include "tests/support/placed_states.h"

namespace kumi {
namespace {

using testing::FakeDevice;
using testing::placed_states;
using testing::Tensors;

std::string message_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "not in: " << text << "\nmissing: " << part;
}

Type type_of(DType dtype, std::initializer_list<int64_t> sizes) {
  Type type{dtype, {}};
  for (int64_t size : sizes) type.shape.emplace_back(size);
  return type;
}

// Two graphs over the states `weight` (f32[2, 3]) and `count` (i32[]):
//   forward: picked (i32[2, 3], ids below 10 or -1), x (f32[2, 3]) -> y = x * weight, total = sum(y)
//   update:  count = count + 1; no inputs or outputs
Plan hand_made_plan() {
  Plan plan;
  plan.states = placed_states({{"weight", State::kWeight, type_of(DType::F32, {2, 3}), {}, {}},
                               {"count", State::kOptimizer, type_of(DType::I32, {}), {}, {}}});
  plan.kernels = {{"scale", "", {}}, {"increment", "", {}}};
  const BufferSlot picked{kNone, 0}, x{kNone, 64}, y{kNone, 128}, total{kNone, 192}, weight{0, 0},
      count{1, 0};
  GraphPlan forward;
  forward.name = "forward";
  forward.arena_bytes = 256;
  forward.inputs = {{"picked", type_of(DType::I32, {2, 3}), picked, IndexRange{10, -1}},
                    {"x", type_of(DType::F32, {2, 3}), x, std::nullopt}};
  forward.outputs = {{"y", type_of(DType::F32, {2, 3}), y, std::nullopt},
                     {"total", type_of(DType::F32, {}), total, std::nullopt},
                     {"picked", type_of(DType::I32, {2, 3}), picked, std::nullopt}};
  Step scale;
  scale.name = "scale";
  scale.scope = "layers.0";
  scale.kernel = 0;
  scale.buffers = {x, weight, y, total};
  scale.cost = {.flops = 12, .bytes = 76};
  forward.steps = {scale};
  GraphPlan update;
  update.name = "update";
  update.arena_bytes = 64;
  Step increment;
  increment.name = "increment";
  increment.kernel = 1;
  increment.buffers = {count};
  update.steps = {increment, increment};
  plan.graphs = {forward, update};
  return plan;
}

class ExecutorTest : public ::testing::Test {
 protected:
  ExecutorTest() {
    device_.functions["scale"] = [](void* const* buffers) {
      const auto* x = static_cast<const float*>(buffers[0]);
      const auto* weight = static_cast<const float*>(buffers[1]);
      auto* y = static_cast<float*>(buffers[2]);
      auto* total = static_cast<float*>(buffers[3]);
      *total = 0;
      for (int i = 0; i < 6; ++i) *total += y[i] = x[i] * weight[i];
    };
    device_.functions["increment"] = [](void* const* buffers) { ++*static_cast<int32_t*>(buffers[0]); };
    executor_ = std::make_unique<Executor>(hand_made_plan(), device_);
  }

  std::vector<Feed> feeds() const {
    return {{"x", DType::F32, {2, 3}, x_}, {"picked", DType::I32, {2, 3}, picked_}};
  }
  std::string failure(const std::vector<Feed>& feeds) {
    return message_of([&] { executor_->run("forward", feeds); });
  }

  FakeDevice device_;
  std::unique_ptr<Executor> executor_;
  const float x_[6] = {1, 2, 3, 4, 5, 6};
  int32_t picked_[6] = {0, 9, -1, 3, 4, 5};
};

TEST_F(ExecutorTest, RunsLaunchesOnTheirBuffers) {
  const float weight[6] = {1, 1, 1, 2, 2, -2};
  executor_->write_state("weight", weight);
  executor_->run("forward", feeds());
  const HostTensor y = executor_->output("y");
  EXPECT_EQ(y.dtype, DType::F32);
  EXPECT_EQ(y.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(as_f32(y.dtype, y.data.data(), 6), (std::vector<float>{1, 2, 3, 8, 10, -12}));
  EXPECT_EQ(executor_->scalar_output("total"), 12);
  const HostTensor picked = executor_->output("picked");
  EXPECT_EQ(std::memcmp(picked.data.data(), picked_, sizeof picked_), 0);
  float part[2] = {0, 0};
  executor_->read_output("y", part, 2 * sizeof(float), sizeof part);
  EXPECT_EQ(part[0], 3);
  EXPECT_EQ(part[1], 8);
  executor_->run("update", {});
  executor_->run("update", {});
  int32_t count = 0;
  executor_->read_state("count", &count);
  EXPECT_EQ(count, 4);
  EXPECT_EQ(device_.launches,
            (std::vector<std::string>{"scale", "increment", "increment", "increment", "increment"}));
}

TEST_F(ExecutorTest, StatesBeginAsZerosAndKeepTheirValues) {
  float weight[6] = {1, 1, 1, 1, 1, 1};
  executor_->read_state("weight", weight);
  for (float w : weight) EXPECT_EQ(w, 0);
  const float written[6] = {6, 5, 4, 3, 2, 1};
  executor_->write_state("weight", written);
  executor_->run("forward", feeds());
  executor_->run("update", {});
  executor_->read_state("weight", weight);
  EXPECT_TRUE(std::equal(weight, weight + 6, written));
  const float two[2] = {50, 40};
  executor_->write_state("weight", two, sizeof(float), sizeof two);
  float three[3] = {0, 0, 0};
  executor_->read_state("weight", three, 0, sizeof three);
  EXPECT_EQ(std::vector<float>(three, three + 3), (std::vector<float>{6, 50, 40}));
  executor_->read_state("weight", weight);
  EXPECT_EQ(weight[3], 3);
  EXPECT_EQ(executor_->state("count").kind, State::kOptimizer);
  EXPECT_TRUE(executor_->has_state("weight"));
  EXPECT_FALSE(executor_->has_state("wight"));
  expect_contains(message_of([&] { executor_->read_state("wight", weight); }),
                  "there is no state \"wight\"\n  hint: did you mean 'weight'?");
}

TEST_F(ExecutorTest, SharesOneArenaAndAlignsStates) {
  EXPECT_EQ(executor_->arena_bytes(), 256);
  EXPECT_EQ(executor_->state_bytes(), 128);
  EXPECT_EQ(device_.allocations, 2);
  executor_.reset();
  EXPECT_EQ(device_.allocations, 0);
}

TEST_F(ExecutorTest, ChecksFedValuesBeforeAnythingRuns) {
  executor_->run("forward", feeds());
  device_.launches.clear();
  int32_t wrong_id[6] = {0, 9, -1, 3, 10, 5}, negative_id[6] = {0, 9, -1, 3, 4, -2};
  struct Case {
    std::vector<Feed> feeds;
    std::string message;
  };
  const Feed x{"x", DType::F32, {2, 3}, x_}, picked{"picked", DType::I32, {2, 3}, picked_};
  const Case cases[] = {
      {{x}, "the input 'picked' is not fed\n  expected: i32[2, 3]"},
      {{}, "the input 'picked' is not fed"},
      {{x, picked, {"pickt", DType::I32, {2, 3}, picked_}},
       "the graph 'forward' has no input 'pickt'\n  expected: one of picked, x\n  hint: did you mean "
       "'picked'?"},
      {{{"x", DType::F32, {3, 2}, x_}, picked}, "the input 'x' is fed f32[3, 2]\n  expected: f32[2, 3]"},
      {{{"x", DType::F32, {6}, x_}, picked}, "the input 'x' is fed f32[6]"},
      {{{"x", DType::F32, {2, 3, 1}, x_}, picked}, "the input 'x' is fed f32[2, 3, 1]"},
      {{{"x", DType::I32, {2, 3}, x_}, picked}, "the input 'x' is fed i32[2, 3]\n  expected: f32[2, 3]"},
      {{x, {"picked", DType::I32, {2, 3}, wrong_id}},
       "the input 'picked' holds 10 at position [1, 1]\n  expected: a value from 0 to 9, or -1 for none"},
      {{x, {"picked", DType::I32, {2, 3}, negative_id}}, "the input 'picked' holds -2 at position [1, 2]"},
  };
  for (const Case& c : cases) expect_contains(failure(c.feeds), c.message);
  EXPECT_TRUE(device_.launches.empty());
  const HostTensor before = executor_->output("picked");
  EXPECT_EQ(std::memcmp(before.data.data(), picked_, sizeof picked_), 0);
}

TEST_F(ExecutorTest, NamesGraphsAndOutputsThatAreMissing) {
  expect_contains(message_of([&] { executor_->output("y"); }),
                  "the output 'y' is read before any graph has run");
  expect_contains(message_of([&] { executor_->run("foward", {}); }),
                  "the plan has no graph 'foward'\n  expected: one of forward, update");
  executor_->run("forward", feeds());
  expect_contains(message_of([&] { executor_->output("totall"); }), "did you mean 'total'?");
  expect_contains(message_of([&] { executor_->scalar_output("y"); }), "the output 'y' is f32[2, 3]");
  expect_contains(message_of([&] { executor_->scalar_output("picked"); }), "expected: f32[]");
  char bytes[32];
  const auto read = [this, &bytes](int64_t offset, int64_t count) {
    return message_of([&] { executor_->read_output("y", bytes, offset, count); });
  };
  for (const std::string& message : {read(0, 25), read(-1, 1), read(24, 1), read(0, -1), read(25, 0)})
    expect_contains(message, "of the output 'y', which has 24");
  const auto read_state = [this, &bytes](int64_t offset, int64_t count) {
    return message_of([&] { executor_->read_state("weight", bytes, offset, count); });
  };
  const auto write_state = [this, &bytes](int64_t offset, int64_t count) {
    return message_of([&] { executor_->write_state("weight", bytes, offset, count); });
  };
  for (const std::string& message : {read_state(0, 25), read_state(-1, 1), read_state(25, 0),
                                     write_state(24, 1), write_state(0, -1), write_state(-4, 4)})
    expect_contains(message, "of the state \"weight\", which has 24");
  executor_->run("update", {});
  expect_contains(message_of([&] { executor_->output("y"); }), "the graph 'update' has no output 'y'");
}

TEST_F(ExecutorTest, TimesLaunchesWhenAsked) {
  executor_->run("forward", feeds());
  EXPECT_EQ(executor_->profile().at(0).runs, 0);
  executor_->set_profiling(true);
  for (int i = 0; i < 3; ++i) executor_->run("forward", feeds());
  const std::vector<StepTime> times = executor_->profile();
  ASSERT_EQ(times.size(), 3u);
  EXPECT_EQ(times[0].graph, "forward");
  EXPECT_EQ(times[0].name, "scale");
  EXPECT_EQ(times[0].scope, "layers.0");
  EXPECT_EQ(times[0].runs, 3);
  EXPECT_GE(times[0].seconds, 0);
  EXPECT_EQ(times[0].cost, (Cost{.flops = 12, .bytes = 76}));
  EXPECT_EQ(times[1].runs, 0);
}

TEST_F(ExecutorTest, RecordsATimelineUpToItsCapacity) {
  std::vector<LaunchSpan> timeline;
  timeline.reserve(4);
  const size_t capacity = timeline.capacity();
  executor_->set_profiling(true, &timeline);
  executor_->run("update", {});
  executor_->run("forward", feeds());
  std::vector<size_t> launches;
  for (const LaunchSpan& span : timeline) launches.push_back(span.launch);
  EXPECT_EQ(launches, (std::vector<size_t>{1, 2, 0}));
  for (size_t i = 0; i < timeline.size(); ++i) {
    EXPECT_LE(timeline[i].begin, timeline[i].end);
    if (i == 0) continue;
    EXPECT_LE(timeline[i - 1].end, timeline[i].begin);
  }
  for (size_t i = 0; i < capacity; ++i) executor_->run("forward", feeds());
  EXPECT_EQ(timeline.size(), capacity);
  EXPECT_EQ(timeline.capacity(), capacity);
  EXPECT_EQ(executor_->profile().at(0).runs, static_cast<int64_t>(capacity) + 1);
}

TEST_F(ExecutorTest, FreesWhatItHasWhenItCannotBeMade) {
  executor_.reset();
  device_.largest_allocation = 128;
  expect_contains(message_of([&] { Executor(hand_made_plan(), device_); }),
                  "no memory\n  while allocating 256 bytes for the arena");
  EXPECT_EQ(device_.allocations, 0);
  device_.largest_allocation = 64;
  expect_contains(message_of([&] { Executor(hand_made_plan(), device_); }),
                  "while allocating 128 bytes for the states");
  device_.largest_allocation = 1024;
  device_.compiler_fails = true;
  expect_contains(message_of([&] { Executor(hand_made_plan(), device_); }), "it does not compile");
  EXPECT_EQ(device_.allocations, 0);
  Plan plan = hand_made_plan();
  plan.states[1].type = type_of(DType::F32, {int64_t{1} << 60});
  plan.states[1].offset = int64_t{1} << 62;
  expect_contains(message_of([&] { Executor(plan, device_); }), "2^63 bytes");
  plan = hand_made_plan();
  plan.states[1].offset.reset();
  expect_contains(message_of([&] { Executor(plan, device_); }), "the state \"count\" has no place in memory");
}

// ------------------------------------------------------------------------------ on the CPU's device

HostTensor host_tensor(const ReferenceTensor& tensor) {
  HostTensor host{tensor.dtype, tensor.shape, {}};
  host.data.resize(tensor.data.size() * 4);
  for (size_t i = 0; i < tensor.data.size(); ++i) {
    const auto number = static_cast<float>(tensor.data[i]);
    const auto integer = static_cast<int32_t>(tensor.data[i]);
    std::memcpy(host.data.data() + i * 4,
                tensor.dtype == DType::I32 ? static_cast<const void*>(&integer) : &number, 4);
  }
  return host;
}

void expect_near(const std::vector<float>& found, const ReferenceTensor& expected, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(found.size(), expected.data.size()) << what;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += std::pow(found[i] - expected.data[i], 2);
    norm += std::pow(expected.data[i], 2);
  }
  EXPECT_LE(std::sqrt(difference), tolerance * std::max(std::sqrt(norm), 1e-3)) << what;
}

// Whole training steps of the small model, with two micro-batches a step, beside the references in
// double precision.
TEST(CpuExecutor, TrainsAsTheReferencesDo) {
  constexpr uint32_t kSeed = 5;
  std::printf("seed %u\n", kSeed);
  PlanOptions options;
  options.goal = Goal::kTrain;
  options.sizes = {{"batch", 3}, {"seq", 7}};
  options.optimizer.accumulation = 2;
  options.optimizer.learning_rate = 0.02;
  options.optimizer.clip = 0.5;
  const Module reference = run_pipeline(testing::small_model(), options, "optimizer");
  std::unique_ptr<Device> device = open_device("cpu");
  Executor executor(make_plan(run_pipeline(reference, options)), *device);

  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal(0, 0.5f);
  Tensors states;
  for (const State& state : reference.states) {
    ReferenceTensor tensor = testing::zeros(state.type);
    if (state.kind == State::kWeight)
      for (double& x : tensor.data) x = normal(random);
    executor.write_state(state.name, host_tensor(tensor).data.data());
    states[state.name] = std::move(tensor);
  }
  for (int step = 1; step <= 4; ++step) {
    for (int part = 0; part < 2; ++part) {
      Tensors inputs;
      std::vector<HostTensor> host;
      for (const char* name : {"tokens", "labels"}) {
        ReferenceTensor tensor = testing::zeros(type_of(DType::I32, {3, 7}));
        for (double& x : tensor.data) x = random() % 11;
        if (std::string(name) == "labels")
          for (double& x : tensor.data)
            if (random() % (part + 2) == 0) x = -100;
        host.push_back(host_tensor(tensor));
        inputs[name] = std::move(tensor);
      }
      testing::evaluate(*reference.find_graph("gradient"), inputs, &states);
      executor.run("gradient", std::vector<Feed>{{"tokens", DType::I32, {3, 7}, host[0].data.data()},
                                                 {"labels", DType::I32, {3, 7}, host[1].data.data()}});
    }
    const Tensors outputs = testing::evaluate(*reference.find_graph("update"), {}, &states);
    executor.run("update", {});
    for (const char* name : {"loss", "grad_norm", "lr"})
      EXPECT_NEAR(executor.scalar_output(name), outputs.at(name).data[0],
                  2e-6 * std::abs(outputs.at(name).data[0]))
          << name << " of step " << step;
    for (const State& state : reference.states) {
      if (state.type.dtype != DType::F32) continue;
      std::vector<float> found(states.at(state.name).data.size());
      executor.read_state(state.name, found.data());
      expect_near(found, states.at(state.name), 2e-5, concat(state.name, " after step ", step));
    }
  }
}

TEST(CpuExecutor, GivesTheSameBitsEveryTime) {
  PlanOptions options;
  options.goal = Goal::kGradient;
  options.sizes = {{"seq", 7}};
  std::unique_ptr<Device> device = open_device("cpu");
  Executor executor(make_plan(run_pipeline(testing::small_model(), options)), *device);
  std::vector<float> values(1000, 0.25f);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i));
  for (const State& state : executor.plan().states) executor.write_state(state.name, values.data());
  std::vector<int32_t> ids(14);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(5 * i % 11);
  const std::vector<Feed> feeds = {{"tokens", DType::I32, {2, 7}, ids.data()},
                                   {"labels", DType::I32, {2, 7}, ids.data()}};
  executor.run("gradient", feeds);
  std::vector<HostTensor> first;
  for (const PlanPort& port : executor.graph("gradient").outputs) first.push_back(executor.output(port.name));
  ASSERT_GT(first.size(), 3u);
  for (int round = 0; round < 20; ++round) {
    executor.run("gradient", feeds);
    for (size_t i = 0; i < first.size(); ++i) {
      const std::string& name = executor.graph("gradient").outputs[i].name;
      EXPECT_EQ(executor.output(name).data, first[i].data) << name;
    }
  }
}

}  // namespace
}  // namespace kumi
