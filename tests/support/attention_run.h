// Attention and its gradient through a plan, on a device whose library may do it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "codegen/plan.h"
#include "runtime/device.h"

namespace kumi::testing {

struct AttentionCase {
  std::string name;
  int64_t batch = 1, heads = 1, kv_heads = 1, seq = 1, head_dim = 8;
  bool causal = true;
  std::string groups = "grouped", layout = "bhsd";
  double scale = 0;
  bool gradient = false;
  DType dtype = DType::BF16;

  std::string text() const;  // for messages
};

// What cuDNN can do: heads grouped and tiled, several batches, with and without a mask; each as attention and
// as its gradient.
std::vector<AttentionCase> library_attention_cases();

// The results that training looks at, on the device, beside the reference. Returns the plan that ran.
Plan expect_attention_is_right(Device& device, const AttentionCase& one, uint32_t seed);

}  // namespace kumi::testing
