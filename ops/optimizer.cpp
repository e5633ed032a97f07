// AdamW: Adam (Kingma & Ba 2014, arXiv:1412.6980) with decoupled weight decay (Loshchilov & Hutter 2017,
// arXiv:1711.05101), element by element. What is the same for all elements (learning rate, bias
// corrections 1 - beta^t, the scale that clips the gradient) comes as scalars, computed once a step.
#include <cmath>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/families.h"

namespace kumi {
namespace {

enum AdamwOperand : size_t { kW, kG, kM, kV, kScale, kLr, kCorrection1, kCorrection2, kApplies };

std::vector<Type> infer_adamw(const InferContext& context) {
  context.require_floating(kW);
  for (size_t i : {kG, kM, kV}) {
    context.require_floating(i);
    if (context.operand(i).shape != context.operand(kW).shape)
      context.fail(concat("shapes of the weight and its ", i == kG ? "gradient" : "moment", " differ: ",
                          display(context.operand(kW).shape), " and ", display(context.operand(i).shape)));
  }
  for (size_t i : {kScale, kLr, kCorrection1, kCorrection2}) {
    context.require_floating(i);
    context.require_rank(i, 0);
  }
  if (context.has(kApplies)) {
    context.require_dtype(kApplies, DType::BOOL);
    context.require_rank(kApplies, 0);
  }
  return {context.operand(kW), context.operand(kM), context.operand(kV)};
}

void lower_adamw(KernelLowering& k) {
  double beta1 = float_attribute(k.attributes(), "beta1"), beta2 = float_attribute(k.attributes(), "beta2");
  double eps = float_attribute(k.attributes(), "eps"),
         decay = float_attribute(k.attributes(), "weight_decay");
  k.pointwise([=](const std::vector<Expr>& x) {
    Expr g = x[kG] * x[kScale];
    Expr m = Expr(beta1) * x[kM] + Expr(1 - beta1) * g;
    Expr v = Expr(beta2) * x[kV] + Expr(1 - beta2) * g * g;
    Expr update = x[kLr] * (m / x[kCorrection1]) / (sqrt(v / x[kCorrection2]) + Expr(eps));
    Expr w = decay == 0 ? x[kW] : x[kW] * (Expr(1.0) - x[kLr] * Expr(decay));
    if (x.size() <= kApplies) return std::vector<Expr>{w - update, m, v};
    return std::vector<Expr>{select(x[kApplies], w - update, x[kW]), select(x[kApplies], m, x[kM]),
                             select(x[kApplies], v, x[kV])};
  });
}

void reference_adamw(const ReferenceContext& context) {
  const Attributes& attributes = context.node.attributes;
  double beta1 = float_attribute(attributes, "beta1"), beta2 = float_attribute(attributes, "beta2");
  double eps = float_attribute(attributes, "eps"), decay = float_attribute(attributes, "weight_decay");
  auto scalar = [&](size_t i) { return context.operand(i).data[0]; };
  if (context.has(kApplies) && scalar(kApplies) == 0) {
    for (size_t i : {0, 1, 2}) context.result(i).data = context.operand(i == 0 ? kW : i == 1 ? kM : kV).data;
    return;
  }
  for (int64_t i = 0; i < context.operand(kW).size(); ++i) {
    double g = context.operand(kG).data[i] * scalar(kScale);
    double m = beta1 * context.operand(kM).data[i] + (1 - beta1) * g;
    double v = beta2 * context.operand(kV).data[i] + (1 - beta2) * g * g;
    double w = context.operand(kW).data[i] * (1 - scalar(kLr) * decay);
    w -= scalar(kLr) * (m / scalar(kCorrection1)) / (std::sqrt(v / scalar(kCorrection2)) + eps);
    context.result(0).data[i] = w;
    context.result(1).data[i] = m;
    context.result(2).data[i] = v;
  }
}

}  // namespace

void register_optimizer_ops() {
  register_op({
      .name = "adamw",
      .family = "optimizer",
      .doc =
          "One step of AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101): g' = g * scale, m = beta1 m + "
          "(1 - beta1) g', v = beta2 v + (1 - beta2) g'^2, w = w (1 - lr weight_decay) - lr (m / "
          "correction1) / "
          "(sqrt(v / correction2) + eps); the corrections of step t are 1 - beta1^t and 1 - beta2^t. Where "
          "`applies` is false, w, m and v stay as they are, whatever the others hold.",
      .operands = {{"w", "the weight, any shape"},
                   {"g", "its gradient"},
                   {"m", "first moment"},
                   {"v", "second moment"},
                   {"scale", "scalar, multiplies the gradient (clipping, averaging)"},
                   {"lr", "scalar, learning rate"},
                   {"correction1", "scalar, 1 - beta1^t"},
                   {"correction2", "scalar, 1 - beta2^t"},
                   {"applies", "bool scalar; without it the step is done", true}},
      .attributes =
          {{"beta1", AttributeKind::kFloat, "decay of the first moment", std::nullopt, {}},
           {"beta2", AttributeKind::kFloat, "decay of the second moment", std::nullopt, {}},
           {"eps", AttributeKind::kFloat, "added to the root of the second moment", std::nullopt, {}},
           {"weight_decay",
            AttributeKind::kFloat,
            "share of the weight that decays, times lr",
            std::nullopt,
            {}}},
      .results = {"w", "m", "v"},
      .infer = infer_adamw,
      .flops =
          [](const Graph& graph, const Node& node) {
            return 14 * static_cast<double>(element_count(graph.type(node.operands[kW]).shape).number());
          },
      .reference = reference_adamw,
      .fusion = Fusion::kPointwise,
      .kernel = lower_adamw,
  });
}

}  // namespace kumi
