// Ops that move elements and compute nothing: reshape, transpose, slice, pad, concat, split, broadcast.
//
// Each says where an element of its result comes from, so that it fuses with what is computed from it.
// A reshape is only another shape of the same memory; the parts of concat and split lie inside the whole
// where memory can arrange it. Gradients move elements back: transpose by the inverse permutation, slice
// and pad are each other's, as concat and split are, broadcast's is a sum.
#include <algorithm>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/axes.h"
#include "ops/families.h"

namespace kumi {
namespace {

double no_flops(const Graph&, const Node&) {
  return 0;
}

AttributeSpec axis_spec(const std::string& doc) {
  return {"axis", AttributeKind::kInt, doc + ", -1 being the last", std::nullopt, {}};
}

// ---- reshape

std::vector<Type> infer_reshape(const InferContext& context) {
  const Type& x = context.operand(0);
  Shape shape = shape_attribute(context.attributes, "shape");
  Dim* open = nullptr;
  Dim rest(1);
  for (Dim& dim : shape) {
    if (!(dim == Dim(-1))) {
      rest = rest * dim;
      continue;
    }
    if (open != nullptr) context.fail(concat("two sizes are -1, in ", to_string(shape)));
    open = &dim;
  }
  Dim count = element_count(x.shape);
  std::optional<Dim> size = open == nullptr ? std::nullopt : Dim::divide_exact(count, rest);
  if (open != nullptr ? !size : !(count == rest))
    context.fail(concat("the numbers of elements differ: ", count.display(), " in ", display(x.shape),
                        open != nullptr ? ", no multiple of " : " and ", rest.without_name().display(),
                        " in ", display(shape)));
  if (open != nullptr) *open = *size;
  return {{x.dtype, shape}};
}

void register_reshape() {
  register_op({
      .name = "reshape",
      .family = "layout",
      .doc = "The same elements, in row-major order, under another shape. Nothing is moved.",
      .operands = {{"x", "any type"}},
      .attributes = {{"shape",
                      AttributeKind::kShape,
                      "sizes, with the same number of elements; one may be -1, which stands for what remains",
                      std::nullopt,
                      {}}},
      .infer = infer_reshape,
      .gradient =
          [](GradientContext& context) {
            Shape shape = context.type(context.operand(0)).shape;
            return std::vector<ValueId>{context.builder.reshape(context.gradient(), shape)};
          },
      .flops = no_flops,
      .reference = [](const ReferenceContext& context) { context.result().data = context.operand(0).data; },
      .precision = OpPrecision::kAny,
      .is_view = true,
  });
}

// ---- transpose

std::vector<Type> infer_transpose(const InferContext& context) {
  const Type& x = context.operand(0);
  const Shape& axes = shape_attribute(context.attributes, "axes");
  require_axes(context, axes, x);
  if (axes.size() != x.shape.size())
    context.fail(concat("'axes' is ", to_string(axes), ", but ", display(x), " has ", x.rank(),
                        x.rank() == 1 ? " axis" : " axes", "; each must be given once"));
  Type result{x.dtype, {}};
  for (int64_t axis : axes_attribute(context.attributes, "axes", x.rank()))
    result.shape.push_back(x.shape[axis]);
  return {result};
}

std::vector<ValueId> gradient_of_transpose(GradientContext& context) {
  int rank = context.type(context.operand(0)).rank();
  std::vector<int64_t> axes = axes_attribute(context.node.attributes, "axes", rank);
  Shape inverse(axes.size());
  for (size_t i = 0; i < axes.size(); ++i) inverse[axes[i]] = Dim(static_cast<int64_t>(i));
  return {context.builder.call("transpose", {context.gradient()}, {{"axes", inverse}})};
}

void lower_transpose(KernelLowering& k) {
  std::vector<int64_t> axes = axes_attribute(k.attributes(), "axes", k.result_type(0).rank());
  k.indexing([&k, axes](const Index& index) {
    Index from(index.size());
    for (size_t i = 0; i < axes.size(); ++i) from[axes[i]] = index[i];
    return k.read(0, from);
  });
}

void reference_transpose(const ReferenceContext& context) {
  const ReferenceTensor& x = context.operand(0);
  std::vector<int64_t> axes =
      axes_attribute(context.node.attributes, "axes", static_cast<int>(x.shape.size()));
  for (int64_t i = 0; i < x.size(); ++i) {
    std::vector<int64_t> index = index_at(i, context.result().shape), from(index.size());
    for (size_t a = 0; a < axes.size(); ++a) from[axes[a]] = index[a];
    context.result().data[i] = x.data[position_of(from, x.shape)];
  }
}

void register_transpose() {
  register_op({
      .name = "transpose",
      .family = "layout",
      .doc = "The axes in another order: axis i of the result is axis axes[i] of x.",
      .operands = {{"x", "any type"}},
      .attributes = {{"axes",
                      AttributeKind::kShape,
                      "every axis of x once; negative ones count from the end",
                      std::nullopt,
                      {}}},
      .infer = infer_transpose,
      .gradient = gradient_of_transpose,
      .flops = no_flops,
      .reference = reference_transpose,
      .precision = OpPrecision::kAny,
      .fusion = Fusion::kIndexing,
      .kernel = lower_transpose,
  });
}

// ---- slice and pad

std::vector<Type> infer_slice(const InferContext& context) {
  Type type = context.operand(0);
  require_axis(context, dim_attribute(context.attributes, "axis"), type);
  Dim& size = type.shape[axis_attribute(context.attributes, "axis", type.rank())];
  const Dim& begin = dim_attribute(context.attributes, "begin");
  const Dim& end = dim_attribute(context.attributes, "end");
  Dim length = end - begin;
  // What cannot be compared yet is compared when the sizes are numbers.
  auto negative = [](const Dim& dim) { return dim.is_number() && dim.number() < 0; };
  if (negative(begin) || negative(size - end) || negative(length - Dim(1)))
    context.fail(concat("elements ", begin.display(), " to ", end.display(), " (excluded) of ",
                        size.display(), ", in ", display(context.operand(0))));
  size = begin == Dim(0) ? end : length;
  return {type};
}

std::vector<ValueId> gradient_of_slice(GradientContext& context) {
  const Attributes& attributes = context.node.attributes;
  Type x = context.type(context.operand(0));
  Dim axis = dim_attribute(attributes, "axis"), begin = dim_attribute(attributes, "begin");
  Dim after = x.shape[axis_attribute(attributes, "axis", x.rank())] - dim_attribute(attributes, "end");
  return {context.builder.call("pad", {context.gradient()},
                               {{"axis", axis}, {"before", begin}, {"after", after}})};
}

void lower_slice(KernelLowering& k) {
  int64_t axis = axis_attribute(k.attributes(), "axis", k.result_type(0).rank());
  int64_t begin = int_attribute(k.attributes(), "begin");
  k.indexing([&k, axis, begin](const Index& index) {
    Index from = index;
    from[axis] = from[axis] + Expr(begin);
    return k.read(0, from);
  });
}

void reference_slice(const ReferenceContext& context) {
  const ReferenceTensor& x = context.operand(0);
  const Attributes& attributes = context.node.attributes;
  int64_t axis = axis_attribute(attributes, "axis", static_cast<int>(x.shape.size()));
  for (int64_t i = 0; i < context.result().size(); ++i) {
    std::vector<int64_t> index = index_at(i, context.result().shape);
    index[axis] += int_attribute(attributes, "begin");
    context.result().data[i] = x.data[position_of(index, x.shape)];
  }
}

std::vector<Type> infer_pad(const InferContext& context) {
  Type type = context.operand(0);
  require_axis(context, dim_attribute(context.attributes, "axis"), type);
  Dim& size = type.shape[axis_attribute(context.attributes, "axis", type.rank())];
  for (const char* side : {"before", "after"}) {
    const Dim& added = dim_attribute(context.attributes, side);
    if (added.is_number() && added.number() < 0)
      context.fail(concat("'", side, "' is ", added.display(), "; it cannot be negative"));
    if (!(added == Dim(0))) size = size + added;
  }
  return {type};
}

std::vector<ValueId> gradient_of_pad(GradientContext& context) {
  const Attributes& attributes = context.node.attributes;
  Type x = context.type(context.operand(0));
  Dim axis = dim_attribute(attributes, "axis"), before = dim_attribute(attributes, "before");
  Dim size = x.shape[axis_attribute(attributes, "axis", x.rank())];
  return {context.builder.call("slice", {context.gradient()},
                               {{"axis", axis}, {"begin", before}, {"end", before + size}})};
}

// The index of an operand that covers [begin, begin + size) of the axis; elsewhere some valid index.
Expr clamped(const Expr& index, int64_t begin, int64_t size) {
  return minimum(maximum(index - Expr(begin), Expr(0)), Expr(size - 1));
}

Expr is_inside(const Expr& index, int64_t begin, int64_t size) {
  return index >= Expr(begin) && index < Expr(begin + size);
}

void lower_pad(KernelLowering& k) {
  int64_t axis = axis_attribute(k.attributes(), "axis", k.result_type(0).rank());
  int64_t before = int_attribute(k.attributes(), "before"), size = k.operand_shape(0)[axis];
  k.indexing([&k, axis, before, size](const Index& index) {
    Index from = index;
    from[axis] = clamped(index[axis], before, size);
    Expr value = k.read(0, from);
    return select(is_inside(index[axis], before, size), value, constant(value.dtype(), 0));
  });
}

void reference_pad(const ReferenceContext& context) {
  const ReferenceTensor& x = context.operand(0);
  const Attributes& attributes = context.node.attributes;
  int64_t axis = axis_attribute(attributes, "axis", static_cast<int>(x.shape.size()));
  for (int64_t i = 0; i < x.size(); ++i) {
    std::vector<int64_t> index = index_at(i, x.shape);
    index[axis] += int_attribute(attributes, "before");
    context.result().data[position_of(index, context.result().shape)] = x.data[i];
  }
}

void register_slice_and_pad() {
  register_op({
      .name = "slice",
      .family = "layout",
      .doc = "The elements begin to end (excluded) of one axis.",
      .operands = {{"x", "any type"}},
      .attributes = {axis_spec("which axis"),
                     {"begin", AttributeKind::kInt, "first element", Attribute(Dim(0)), {}},
                     {"end", AttributeKind::kInt, "element after the last", std::nullopt, {}}},
      .infer = infer_slice,
      .gradient = gradient_of_slice,
      .flops = no_flops,
      .reference = reference_slice,
      .precision = OpPrecision::kAny,
      .fusion = Fusion::kIndexing,
      .kernel = lower_slice,
  });
  register_op({
      .name = "pad",
      .family = "layout",
      .doc = "Zeros before and after the elements of one axis; the gradient of slice.",
      .operands = {{"x", "any type"}},
      .attributes = {axis_spec("which axis"),
                     {"before", AttributeKind::kInt, "number of zeros before", Attribute(Dim(0)), {}},
                     {"after", AttributeKind::kInt, "number of zeros after", Attribute(Dim(0)), {}}},
      .infer = infer_pad,
      .gradient = gradient_of_pad,
      .flops = no_flops,
      .reference = reference_pad,
      .precision = OpPrecision::kAny,
      .fusion = Fusion::kIndexing,
      .kernel = lower_pad,
  });
}

// ---- concat

std::vector<Type> infer_concat(const InferContext& context) {
  Type type = context.operand(0);
  require_axis(context, dim_attribute(context.attributes, "axis"), type);
  int64_t axis = axis_attribute(context.attributes, "axis", type.rank());
  for (size_t i = 1; i < context.operands.size(); ++i) {
    const Type& next = context.operand(i);
    Shape rest = next.shape;
    if (next.rank() == type.rank()) rest[axis] = type.shape[axis];
    if (next.dtype != type.dtype || rest != type.shape)
      context.fail(concat("operands must be alike but for axis ", axis, ", found ",
                          display(context.operand(0)), " and ", display(next)));
    type.shape[axis] = type.shape[axis] + next.shape[axis];
  }
  return {type};
}

std::vector<ValueId> gradient_of_concat(GradientContext& context) {
  int64_t axis = axis_attribute(context.node.attributes, "axis", context.type(context.result(0)).rank());
  Shape sizes;
  for (ValueId operand : context.node.operands) sizes.push_back(context.type(operand).shape[axis]);
  return context.builder.build("split", {context.gradient()}, {{"axis", Dim(axis)}, {"sizes", sizes}});
}

void reference_concat(const ReferenceContext& context) {
  ReferenceTensor& y = context.result();
  int64_t axis = axis_attribute(context.node.attributes, "axis", static_cast<int>(y.shape.size()));
  int64_t begin = 0;
  for (const ReferenceTensor* x : context.operands) {
    for (int64_t i = 0; i < x->size(); ++i) {
      std::vector<int64_t> index = index_at(i, x->shape);
      index[axis] += begin;
      y.data[position_of(index, y.shape)] = x->data[i];
    }
    begin += x->shape[axis];
  }
}

void register_concat() {
  register_op({
      .name = "concat",
      .family = "layout",
      .doc = "The operands one after the other along an axis.",
      .operands = {{"x", "of one type but for the size of the axis", false, true}},
      .attributes = {axis_spec("along which axis")},
      .infer = infer_concat,
      .gradient = gradient_of_concat,
      .flops = no_flops,
      .reference = reference_concat,
      .precision = OpPrecision::kAny,
      .moves_parts = true,
  });
}

// ---- split

std::vector<Type> infer_split(const InferContext& context) {
  const Type& x = context.operand(0);
  require_axis(context, dim_attribute(context.attributes, "axis"), x);
  int64_t axis = axis_attribute(context.attributes, "axis", x.rank());
  const Shape& sizes = shape_attribute(context.attributes, "sizes");
  if (sizes.empty()) context.fail("'sizes' is empty");
  Dim sum(0);
  std::vector<Type> parts;
  for (const Dim& size : sizes) {
    sum = sum + size;
    parts.push_back(x);
    parts.back().shape[axis] = size;
  }
  context.require_equal(sum, x.shape[axis], "the sum of the sizes and the axis");
  return parts;
}

std::vector<ValueId> gradient_of_split(GradientContext& context) {
  std::vector<ValueId> parts;
  for (size_t i = 0; i < context.node.results.size(); ++i) {
    Type type = context.type(context.result(i));
    parts.push_back(context.gradient(i) != kNone ? context.gradient(i)
                                                 : context.builder.constant(0, type.shape, type.dtype));
  }
  return {context.builder.call("concat", parts, {{"axis", dim_attribute(context.node.attributes, "axis")}})};
}

void reference_split(const ReferenceContext& context) {
  const ReferenceTensor& x = context.operand(0);
  int64_t axis = axis_attribute(context.node.attributes, "axis", static_cast<int>(x.shape.size()));
  int64_t begin = 0;
  for (ReferenceTensor* y : context.results) {
    for (int64_t i = 0; i < y->size(); ++i) {
      std::vector<int64_t> index = index_at(i, y->shape);
      index[axis] += begin;
      y->data[i] = x.data[position_of(index, x.shape)];
    }
    begin += y->shape[axis];
  }
}

void register_split() {
  register_op({
      .name = "split",
      .family = "layout",
      .doc = "The parts of one axis, one after the other: the inverse of concat.",
      .operands = {{"x", "any type"}},
      .attributes =
          {axis_spec("which axis"),
           {"sizes", AttributeKind::kShape, "of the parts; their sum is the axis", std::nullopt, {}}},
      .results = {"part"},
      .variadic_results = true,
      .infer = infer_split,
      .gradient = gradient_of_split,
      .flops = no_flops,
      .reference = reference_split,
      .precision = OpPrecision::kAny,
      .moves_parts = true,
  });
}

// ---- broadcast

std::vector<Type> infer_broadcast(const InferContext& context) {
  const Type& x = context.operand(0);
  const Shape& shape = shape_attribute(context.attributes, "shape");
  std::optional<Shape> together = broadcast(shape, x.shape);
  if (!together || *together != shape)
    context.fail(concat(display(x), " does not broadcast to ", display(shape),
                        ": from the last axis on, each size must be the same or 1"));
  return {{x.dtype, shape}};
}

void register_broadcast() {
  register_op({
      .name = "broadcast",
      .family = "layout",
      .doc = "x repeated along axes of size 1 and along new leading axes, by NumPy's rules.",
      .operands = {{"x", "any type"}},
      .attributes = {{"shape", AttributeKind::kShape, "of the result", std::nullopt, {}}},
      .infer = infer_broadcast,
      .gradient =
          [](GradientContext& context) {
            return std::vector<ValueId>{
                context.builder.sum_to(context.gradient(), context.type(context.operand(0)).shape)};
          },
      .flops = no_flops,
      .reference =
          [](const ReferenceContext& context) {
            const ReferenceTensor& x = context.operand(0);
            for (int64_t i = 0; i < context.result().size(); ++i)
              context.result().data[i] =
                  x.data[broadcast_position(index_at(i, context.result().shape), x.shape)];
          },
      .fusion = Fusion::kPointwise,
      .kernel =
          [](KernelLowering& k) {
            k.pointwise([](const std::vector<Expr>& x) { return std::vector<Expr>{x[0]}; });
          },
  });
}

}  // namespace

void register_layout_ops() {
  register_reshape();
  register_transpose();
  register_slice_and_pad();
  register_concat();
  register_split();
  register_broadcast();
}

}  // namespace kumi
