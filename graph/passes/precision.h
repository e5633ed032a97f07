// precision: products and attention in bf16, everything else in f32.
//
// With Precision::kBF16 the operands of ops with OpDef::precision kLow (matmul, attention and its
// gradient) are rounded to bf16 and their results are bf16; they accumulate in f32. Ops with kAny
// (layout, rope, cross-entropy) take the type that comes. All others compute in f32 as written: the casts
// that this needs are element-wise and become part of the kernels around them, so that what is stored
// between kernels is mostly bf16. States stay f32: master weights are rounded where a product takes them.
// A product whose result only leaves the graph, as the gradients of weights do, gives its sums in f32.
#pragma once

#include "graph/pipeline.h"

namespace kumi {

Module precision(Module module, const PlanOptions& options);

}  // namespace kumi
