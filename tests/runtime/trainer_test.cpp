// The loop of training: what runs how often, when it saves, and how it ends.
#include "runtime/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "tests/support/fake_device.h"
#include "tests/support/placed_states.h"

namespace kumi {
namespace {

using testing::FakeDevice;
using testing::placed_states;

// Deals out ids that count up; ends after `batches` batches.
class CountingBatches : public BatchSource {
 public:
  explicit CountingBatches(int64_t batches) : batches_(batches) {}
  int64_t batch() const override { return 2; }
  int64_t seq() const override { return 3; }
  void next(int32_t* tokens, int32_t* labels) override {
    if (position_ == 2 * batches_) throw Error("the data has run out");
    for (int i = 0; i < 6; ++i) {
      tokens[i] = static_cast<int32_t>(position_);
      labels[i] = static_cast<int32_t>(position_ + 1);
    }
    position_ += 2;
  }
  int64_t position() const override { return position_; }
  void seek(int64_t position) override { position_ = position; }
  std::optional<int64_t> remaining() const override { return batches_ - position_ / 2; }

 private:
  int64_t batches_;
  int64_t position_ = 0;
};

// The shape of every training plan: `gradient` adds tokens[0] to the state `sum`; `update` gives it as
// the loss, clears it and counts the step.
Plan training_plan() {
  Plan plan;
  const Type scalar{DType::F32, {}}, ids{DType::I32, {Dim(2), Dim(3)}};
  plan.states = placed_states({{"step", State::kOptimizer, Type{DType::I32, {}}, {}, {}},
                               {"sum", State::kAccumulator, scalar, {}, {}}});
  plan.kernels = {{"add", "", {}}, {"finish", "", {}}};
  const BufferSlot step{0, 0}, sum{1, 0}, tokens{kNone, 0}, labels{kNone, 64}, loss{kNone, 128},
      norm{kNone, 192}, rate{kNone, 256};
  GraphPlan gradient{"gradient", {}, {{"tokens", ids, tokens, {}}, {"labels", ids, labels, {}}}, {}, 320};
  Step add;
  add.kernel = 0;
  add.buffers = {tokens, sum};
  gradient.steps = {add};
  GraphPlan update{"update",
                   {},
                   {},
                   {{"loss", scalar, loss, {}}, {"grad_norm", scalar, norm, {}}, {"lr", scalar, rate, {}}},
                   320};
  Step finish;
  finish.kernel = 1;
  finish.buffers = {step, sum, loss, norm, rate};
  update.steps = {finish};
  plan.graphs = {gradient, update};
  return plan;
}

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() {
    device_.functions["add"] = [](void* const* buffers) {
      *static_cast<float*>(buffers[1]) += static_cast<float>(*static_cast<const int32_t*>(buffers[0]));
    };
    device_.functions["finish"] = [this](void* const* buffers) {
      auto* sum = static_cast<float*>(buffers[1]);
      if (lost_sums_.contains(static_cast<int>(*sum))) {
        *static_cast<float*>(buffers[2]) = bad_value_;
        *sum = 0;
        return;
      }
      const int32_t step = ++*static_cast<int32_t*>(buffers[0]);
      *static_cast<float*>(buffers[2]) = step == bad_loss_step_ ? bad_value_ : *sum;
      *static_cast<float*>(buffers[3]) = step == bad_norm_step_ ? bad_value_ : 2.5f;
      *static_cast<float*>(buffers[4]) = 0.125f;
      *sum = 0;
    };
    executor_ = std::make_unique<Executor>(training_plan(), device_);
    hooks_.on_step = [this](const StepReport& report) { reports_.push_back(report); };
    hooks_.save = [this](int64_t step) { saved_.push_back(step); };
  }

  TrainingEnd train(const TrainingOptions& options) {
    return kumi::train(*executor_, batches_, options, hooks_);
  }

  FakeDevice device_;
  std::unique_ptr<Executor> executor_;
  CountingBatches batches_{100};
  TrainingHooks hooks_;
  std::vector<StepReport> reports_;
  std::vector<int64_t> saved_;
  int32_t bad_loss_step_ = 0, bad_norm_step_ = 0;
  std::set<int> lost_sums_;  // steps with these losses are lost, and skipped by the update
  float bad_value_ = std::numeric_limits<float>::quiet_NaN();
};

TEST_F(TrainerTest, RunsMicroBatchesThenTheUpdate) {
  EXPECT_EQ(train({.steps = 2, .accumulation = 3}), TrainingEnd::FINISHED);
  EXPECT_EQ(device_.launches,
            (std::vector<std::string>{"add", "add", "add", "finish", "add", "add", "add", "finish"}));
  ASSERT_EQ(reports_.size(), 2u);
  EXPECT_EQ(reports_[0].step, 1);
  EXPECT_EQ(reports_[0].loss, 0 + 2 + 4);
  EXPECT_EQ(reports_[0].grad_norm, 2.5);
  EXPECT_EQ(reports_[0].learning_rate, 0.125);
  EXPECT_EQ(reports_[0].tokens, 18);
  EXPECT_GE(reports_[0].seconds, 0);
  EXPECT_EQ(reports_[1].loss, 6 + 8 + 10);
  EXPECT_EQ(steps_done(*executor_), 2);
  EXPECT_EQ(batches_.position(), 12);
}

TEST_F(TrainerTest, GoesOnAfterTheStepsThatWereDone) {
  const int32_t done = 5;
  executor_->write_state("step", &done);
  EXPECT_EQ(steps_done(*executor_), 5);
  EXPECT_EQ(train({.steps = 7}), TrainingEnd::FINISHED);
  ASSERT_EQ(reports_.size(), 2u);
  EXPECT_EQ(reports_[0].step, 6);
  EXPECT_EQ(reports_[1].step, 7);
  // All are done already: nothing runs, nothing is saved.
  reports_.clear();
  saved_.clear();
  EXPECT_EQ(train({.steps = 7}), TrainingEnd::FINISHED);
  EXPECT_EQ(train({.steps = 3}), TrainingEnd::FINISHED);
  EXPECT_TRUE(reports_.empty());
  EXPECT_TRUE(saved_.empty());
}

TEST_F(TrainerTest, SavesWhenDueAndOnceAtTheEnd) {
  train({.steps = 7, .checkpoint_every = 3});
  EXPECT_EQ(saved_, (std::vector<int64_t>{3, 6, 7}));
  saved_.clear();
  train({.steps = 9, .checkpoint_every = 3});
  EXPECT_EQ(saved_, (std::vector<int64_t>{9}));
  saved_.clear();
  train({.steps = 12});
  EXPECT_EQ(saved_, (std::vector<int64_t>{12}));
}

TEST_F(TrainerTest, StopsBetweenStepsAndSaves) {
  hooks_.should_stop = [this] { return reports_.size() == 2; };
  EXPECT_EQ(train({.steps = 5, .checkpoint_every = 2}), TrainingEnd::STOPPED);
  EXPECT_EQ(saved_, (std::vector<int64_t>{2}));
  EXPECT_EQ(steps_done(*executor_), 2);
  // Asked to stop at the last step, it has finished.
  hooks_.should_stop = [] { return true; };
  EXPECT_EQ(train({.steps = 3}), TrainingEnd::FINISHED);
  EXPECT_EQ(saved_, (std::vector<int64_t>{2, 3}));
}

TEST_F(TrainerTest, NeedsNoHooks) {
  hooks_ = {};
  EXPECT_EQ(train({.steps = 2, .checkpoint_every = 1}), TrainingEnd::FINISHED);
  EXPECT_EQ(steps_done(*executor_), 2);
}

TEST_F(TrainerTest, EndsWithAnErrorWhenNumbersAreLost) {
  struct Case {
    int32_t loss_step, norm_step;
    float value;
    const char* message;
  };
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Case& c :
       {Case{3, 0, nan, "step 3: the loss is nan"}, Case{3, 0, infinity, "step 3: the loss is inf"},
        Case{0, 3, infinity, "step 3: the gradient norm is inf"},
        Case{0, 3, nan, "step 3: the gradient norm is nan"}}) {
    const int32_t none = 0;
    executor_->write_state("step", &none);
    batches_.seek(0);
    reports_.clear();
    saved_.clear();
    bad_loss_step_ = c.loss_step;
    bad_norm_step_ = c.norm_step;
    bad_value_ = c.value;
    try {
      train({.steps = 5, .checkpoint_every = 1});
      ADD_FAILURE() << "no error: " << c.message;
    } catch (const Error& error) {
      EXPECT_EQ(error.what_happened(), c.message);
    }
    EXPECT_EQ(reports_.size(), 2u);
    EXPECT_EQ(saved_, (std::vector<int64_t>{1, 2}));
  }
}

// A batch's loss is its number times 2.
TEST_F(TrainerTest, SkippedStepsTakeBatchesAndDoNotCount) {
  lost_sums_ = {2, 8, 10};
  EXPECT_EQ(train({.steps = 4, .checkpoint_every = 2, .skips_non_finite = true}), TrainingEnd::FINISHED);
  ASSERT_EQ(reports_.size(), 7u);
  const std::vector<int64_t> steps = {1, 2, 2, 3, 4, 4, 4};
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(reports_[i].step, steps[i]);
    EXPECT_EQ(reports_[i].is_skipped(), i == 1 || i == 4 || i == 5);
  }
  EXPECT_EQ(reports_[1].skip_reason, "the loss is nan");
  EXPECT_EQ(reports_[2].loss, 4);
  EXPECT_EQ(saved_, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(steps_done(*executor_), 4);
  EXPECT_EQ(batches_.position(), 14);
}

TEST_F(TrainerTest, DoesNotSaveTwiceAfterASkippedStep) {
  lost_sums_ = {4};
  hooks_.should_stop = [this] { return reports_.back().is_skipped(); };
  EXPECT_EQ(train({.steps = 4, .checkpoint_every = 2, .skips_non_finite = true}), TrainingEnd::STOPPED);
  EXPECT_EQ(saved_, (std::vector<int64_t>{2}));
}

TEST_F(TrainerTest, FinishesWhereSkippedBatchesAreMissing) {
  lost_sums_ = {2};
  batches_ = CountingBatches(4);
  EXPECT_EQ(train({.steps = 4, .skips_non_finite = true}), TrainingEnd::FINISHED);
  EXPECT_EQ(saved_, (std::vector<int64_t>{3}));
  EXPECT_EQ(steps_done(*executor_), 3);
}

TEST_F(TrainerTest, EndsWithAnErrorWhenNothingElseIsLeftThanToSkip) {
  lost_sums_ = {2, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24};
  try {
    train({.steps = 50, .checkpoint_every = 1, .skips_non_finite = true});
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.what_happened(), "step 3: the loss is nan; 10 steps in a row had to be skipped");
  }
  EXPECT_EQ(saved_, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(reports_.size(), 13u);
}

TEST_F(TrainerTest, ReportsDataThatRunsOut) {
  batches_ = CountingBatches(3);
  try {
    train({.steps = 2, .accumulation = 2});
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the data has run out");
  }
  EXPECT_EQ(steps_done(*executor_), 1);
}

}  // namespace
}  // namespace kumi
