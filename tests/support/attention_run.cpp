#include "tests/support/attention_run.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "graph/builder.h"
#include "ops/all_ops.h"
#include "tests/ops/device_run.h"
#include "tests/ops/op_cases.h"

namespace kumi::testing {
namespace {

constexpr size_t kGradients = 3;  // dq, dk, dv; what follows them is for the kernel alone

OpCase op_case(const AttentionCase& one, uint32_t seed) {
  auto shape = [&](int64_t heads) {
    return one.layout == "bshd" ? Sizes{one.batch, one.seq, heads, one.head_dim}
                                : Sizes{one.batch, heads, one.seq, one.head_dim};
  };
  const TestOperand q = tensor(one.dtype, shape(one.heads)), k = tensor(one.dtype, shape(one.kv_heads));
  const Attributes attributes = {
      {"causal", one.causal}, {"groups", one.groups}, {"layout", one.layout}, {"scale", one.scale}};
  if (!one.gradient) return {"attention", {q, k, k}, attributes, seed};
  return {
      "attention_grad", {q, k, k, result_of("attention", 0), result_of("attention", 1), q}, attributes, seed};
}

}  // namespace

std::string AttentionCase::text() const {
  return concat(name, gradient ? ", gradient: " : ": ", to_string(dtype), " ", batch, " x ", heads,
                " heads of ", head_dim, " over ", kv_heads, " ", groups, ", ", seq, " long, ", layout,
                causal ? ", causal" : "");
}

std::vector<AttentionCase> library_attention_cases() {
  const AttentionCase forward[] = {
      {"one head", 1, 1, 1, 24, 64},
      {"heads of their own", 2, 3, 3, 33, 64},
      {"grouped", 2, 6, 2, 40, 128},
      {"grouped, heads last", 3, 4, 2, 17, 32, true, "grouped", "bshd"},
      {"one key head", 2, 4, 1, 20, 64, true, "tiled", "bshd"},
      {"tiled", 1, 6, 2, 40, 128, true, "tiled"},
      {"tiled, heads last", 2, 6, 3, 21, 64, true, "tiled", "bshd", 0.3},
      {"tiled heads of their own", 2, 3, 3, 16, 16, true, "tiled"},
      {"without a mask", 2, 4, 2, 30, 64, false, "grouped", "bhsd", 0.2},
      {"tiled without a mask", 2, 4, 2, 25, 64, false, "tiled"},
      {"two blocks", 1, 2, 1, 200, 64},
  };
  std::vector<AttentionCase> cases;
  for (AttentionCase one : forward)
    for (const bool gradient : {false, true}) {
      one.gradient = gradient;
      cases.push_back(one);
    }
  return cases;
}

Plan expect_attention_is_right(Device& device, const AttentionCase& one, uint32_t seed) {
  SCOPED_TRACE(concat(one.text(), ", seed ", seed));
  register_all_ops();
  const OpCase op = op_case(one, seed);
  const std::vector<std::optional<ReferenceTensor>> operands = operand_values(op);
  Module module;
  module.name = "attention_run";
  Graph& graph = module.graphs.emplace_back();
  graph.name = "run";
  GraphBuilder builder(graph);
  std::vector<ValueId> inputs;
  Tensors feeds;
  for (size_t i = 0; i < operands.size(); ++i) {
    const std::string name = concat("operand", i);
    const Shape shape(operands[i]->shape.begin(), operands[i]->shape.end());
    inputs.push_back(
        builder.call("input", {}, {{"name", name}, {"dtype", operands[i]->dtype}, {"shape", shape}}, name));
    feeds[name] = *operands[i];
  }
  std::vector<ValueId> results = builder.build(op.op, inputs, op.attributes);
  if (one.gradient) results.resize(kGradients);
  for (size_t i = 0; i < results.size(); ++i) graph.outputs.push_back({concat("result", i), results[i]});
  const Attributes attributes = graph.nodes.back().attributes;

  DeviceRun run(module, {}, device);
  Tensors found = run.run("run", feeds);
  const std::vector<ReferenceTensor> wanted = reference_results(op.op, attributes, operands);
  for (size_t i = 0; i < results.size(); ++i) {
    // Probabilities and their gradients are rounded before the second product; a row's log-sum-exp is not.
    const bool is_lse = !one.gradient && i == 1;
    Tolerance tolerance;
    tolerance.terms = static_cast<double>(std::max(one.seq, one.head_dim) * (one.heads / one.kv_heads));
    if (!is_lse) tolerance.terms_in = one.dtype;
    for (double x : wanted[i].data) tolerance.scale = std::max(tolerance.scale, std::abs(x));
    EXPECT_EQ(difference(found.at(concat("result", i)), wanted[i], tolerance), "") << "result " << i;
  }
  return run.plan();
}

}  // namespace kumi::testing
