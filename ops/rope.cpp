// Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the rotate-half form of GPT-NeoX and
// LLaMA: element i of a head is paired with element i + d/2, and the pair is rotated by the angle
// position * base^(-2i/d), where the position is the index on one of the other axes, counted from the
// operand `position` where there is one:
//   y[i]       = x[i] cos - x[i + d/2] sin
//   y[i + d/2] = x[i + d/2] cos + x[i] sin
// Angles, sines and cosines are computed in double precision, once a position and for all heads, so
// that position 4096 is as exact as position 0 and the trigonometry costs next to nothing.
#include <cmath>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/axes.h"
#include "ops/families.h"

namespace kumi {
namespace {

std::vector<Type> infer_rope(const InferContext& context) {
  context.require_floating(0);
  const Type& x = context.operand(0);
  if (x.rank() < 2) context.fail(concat("'x' needs the axes [..., seq, head_dim], found ", display(x)));
  if (!Dim::divide_exact(x.shape.back(), 2))
    context.fail(
        concat("the last axis must be even, since its halves are paired: ", x.shape.back().display()));
  if (float_attribute(context.attributes, "base") <= 0) context.fail("'base' must be positive");
  if (context.has(1) && context.operand(1) != Type{DType::I32, {}})
    context.fail(concat("'position' needs the type i32[], found ", display(context.operand(1))));
  require_axis(context, dim_attribute(context.attributes, "axis"), x);
  if (axis_attribute(context.attributes, "axis", x.rank()) == x.rank() - 1)
    context.fail("the positions cannot be those of the last axis, whose halves are paired");
  return {x};
}

std::vector<ValueId> gradient_of_rope(GradientContext& context) {
  // A rotation's adjoint is the rotation back.
  const Attributes& attributes = context.node.attributes;
  std::vector<ValueId> operands = context.node.operands, gradients(operands.size(), kNone);
  operands[0] = context.gradient();
  gradients[0] = context.builder.call("rope", operands,
                                      {{"base", float_attribute(attributes, "base")},
                                       {"inverse", !bool_attribute(attributes, "inverse")},
                                       {"axis", dim_attribute(attributes, "axis")}});
  return gradients;
}

// The axes but that of the positions and the last: one index for all of them.
struct Heads {
  std::vector<size_t> axes;
  int64_t count = 1;

  Heads(const std::vector<int64_t>& shape, int64_t position_axis) {
    for (size_t i = 0; i + 1 < shape.size(); ++i) {
      if (static_cast<int64_t>(i) == position_axis) continue;
      axes.push_back(i);
      count *= shape[i];
    }
  }

  // Where the head's first element is, in elements.
  Expr offset(Expr head, const StridedShape& layout) const {
    Expr sum = 0;
    for (size_t i = axes.size(); i-- > 0;) {
      const Expr size = Expr(layout.shape[axes[i]]);
      sum = sum + (i == 0 ? head : head % size) * Expr(layout.strides[axes[i]]);
      if (i > 0) head = head / size;
    }
    return sum;
  }
};

void lower_rope(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  const StridedShape from = lowering.operand_layout(0), to = lowering.result_layout(0);
  const int64_t axis = axis_attribute(lowering.attributes(), "axis", static_cast<int>(from.shape.size()));
  const int64_t head_dim = from.shape.back(), half = head_dim / 2, seq = from.shape[axis];
  const Heads heads(from.shape, axis);
  double log_base = std::log(float_attribute(lowering.attributes(), "base"));
  double direction = bool_attribute(lowering.attributes(), "inverse") ? -1 : 1;
  Buffer x = lowering.operand_buffer(0), y = lowering.result_buffer(0), first_position;
  if (lowering.has_operand(1)) first_position = lowering.operand_buffer(1);

  k.parallel(seq, 4 * seq * heads.count * head_dim, [&](Expr index) {
    Expr position = index;
    if (lowering.has_operand(1)) position = k.let("position", position + cast(DType::I64, first_position[0]));
    Buffer cosine = k.array("cosine", DType::F32, half), sine = k.array("sine", DType::F32, half);
    k.loop(0, half, LoopKind::kVector, [&](Expr i) {
      Expr exponent = cast(DType::F64, i) * f64(-2 * log_base / static_cast<double>(head_dim));
      Expr angle = k.let("angle", cast(DType::F64, position) * exp(exponent));
      k.store(cosine, i, cast(DType::F32, cos(angle)));
      k.store(sine, i, cast(DType::F32, sin(angle) * f64(direction)));
    });
    k.loop(0, heads.count, LoopKind::kSerial, [&](Expr head) {
      Expr x_row = k.let("x_row", index * from.strides[axis] + heads.offset(head, from));
      Expr y_row = k.let("y_row", index * to.strides[axis] + heads.offset(head, to));
      k.loop(0, half, LoopKind::kVector, [&](Expr i) {
        Expr first = k.let("first", x[x_row + i]), second = k.let("second", x[x_row + i + half]);
        k.store(y, y_row + i, first * cosine[i] - second * sine[i]);
        k.store(y, y_row + i + half, second * cosine[i] + first * sine[i]);
      });
    });
  });
}

void reference_rope(const ReferenceContext& context) {
  const ReferenceTensor& x = context.operand(0);
  double base = float_attribute(context.node.attributes, "base");
  double direction = bool_attribute(context.node.attributes, "inverse") ? -1 : 1;
  int64_t axis = axis_attribute(context.node.attributes, "axis", static_cast<int>(x.shape.size()));
  int64_t head_dim = x.shape.back(), half = head_dim / 2;
  double first_position = context.has(1) ? context.operand(1).data[0] : 0;
  for (int64_t at = 0; at < x.size(); ++at) {
    std::vector<int64_t> index = index_at(at, x.shape);
    const int64_t i = index.back();
    if (i >= half) continue;
    double frequency = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    double angle = direction * (first_position + static_cast<double>(index[axis])) * frequency;
    double first = x.data[at], second = x.data[at + half];
    context.result().data[at] = first * std::cos(angle) - second * std::sin(angle);
    context.result().data[at + half] = second * std::cos(angle) + first * std::sin(angle);
  }
}

}  // namespace

void register_rope_ops() {
  register_op({
      .name = "rope",
      .family = "rope",
      .doc =
          "Rotary position embedding, rotate-half (Su et al. 2021, arXiv:2104.09864): the pair of elements i "
          "and "
          "i + d/2 of the last axis (of size d, even) is rotated by the angle position * base^(-2i/d); the "
          "position is the index on the axis `axis`, counted from the operand `position`.",
      .operands = {{"x", "[..., seq, head_dim], any floating type"},
                   {"position", "i32[], of the first element of the axis; 0 where it is left out", true}},
      .attributes =
          {{"base", AttributeKind::kFloat, "wavelengths go from 2 pi to 2 pi base", Attribute(10000.0), {}},
           {"inverse", AttributeKind::kBool, "rotate by the negated angle", Attribute(false), {}},
           {"axis", AttributeKind::kInt, "of the positions", Attribute(Dim(-2)), {}}},
      .infer = infer_rope,
      .gradient = gradient_of_rope,
      .flops =
          [](const Graph& graph, const Node& node) {
            return 3 * static_cast<double>(element_count(graph.type(node.operands[0]).shape).number());
          },
      .reference = reference_rope,
      .precision = OpPrecision::kAny,
      .takes_strides = true,
      .overwrites_operand = 0,
      .kernel = lower_rope,
  });
}

}  // namespace kumi
