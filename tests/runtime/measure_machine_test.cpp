// Measuring a machine. What it measures depends on the machine; that every rate can be predicted with, on
// any device, does not.
#include "runtime/measure_machine.h"

#include <gtest/gtest.h>

#include <cmath>

#include "ops/all_ops.h"
#include "tests/support/fake_device.h"

namespace kumi {
namespace {

TEST(MeasureMachine, GivesUsableRatesOnADeviceThatTakesNoTime) {
  register_all_ops();
  testing::FakeDevice device;
  const MachineRates f32 = measure_machine(device, Precision::kF32);
  const MachineRates bf16 = measure_machine(device, Precision::kBF16);
  EXPECT_EQ(f32.bf16_product_flops, 0);
  EXPECT_GT(bf16.bf16_product_flops, 0);
  for (const double rate : {f32.f32_product_flops, f32.element_flops, bf16.bf16_product_flops})
    EXPECT_TRUE(rate > 0 && std::isfinite(rate)) << rate;
  EXPECT_GE(f32.launch_seconds, 0);
  ASSERT_GE(f32.bandwidths.size(), 2u);
  for (size_t i = 0; i < f32.bandwidths.size(); ++i) {
    EXPECT_TRUE(f32.bandwidths[i].bytes_per_second > 0 && std::isfinite(f32.bandwidths[i].bytes_per_second));
    if (i == 0) continue;
    EXPECT_GT(f32.bandwidths[i].working_set, f32.bandwidths[i - 1].working_set);
  }
  EXPECT_TRUE(std::isfinite(predict({1e9, 1e9, 1e8}, f32).seconds()));
  EXPECT_EQ(device.allocations, 0);
}

TEST(MeasureMachine, TakesTheBestOfTwo) {
  const MachineRates a{1, 20, 3, {{8, 5}, {16, 2}}, 1e-6}, b{2, 10, 4, {{8, 4}, {16, 3}}, 2e-6};
  for (const MachineRates& best : {best_of(a, b), best_of(b, a)}) {
    EXPECT_EQ(best.f32_product_flops, 2);
    EXPECT_EQ(best.bf16_product_flops, 20);
    EXPECT_EQ(best.element_flops, 4);
    EXPECT_EQ(best.bandwidth(8), 5);
    EXPECT_EQ(best.bandwidth(16), 3);
    EXPECT_EQ(best.launch_seconds, 1e-6);
  }
}

TEST(MeasureMachine, SaysWhenThereIsNotEnoughMemory) {
  register_all_ops();
  testing::FakeDevice device;
  device.largest_allocation = 1 << 20;
  EXPECT_THROW(measure_machine(device, Precision::kF32), Error);
  EXPECT_EQ(device.allocations, 0);
}

}  // namespace
}  // namespace kumi
