// Sums, means and maxima over axes, and the sum of squares that the gradient norm is made of.
//
// Where only the last axis is reduced the op is a row op, where leading axes are it is a column op: both
// fuse with what computes the operand. Everything else (axes in the middle, everything at once) is a
// kernel of its own, which accumulates in f64, as does a row of more than kLongestF32Sum elements: the
// sum of millions of f32 then rounds once. Blocks and the order within them depend on the sizes alone,
// never on the number of threads.
#include <algorithm>
#include <cmath>

#include "codegen/column_grid.h"
#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/axes.h"
#include "ops/families.h"

namespace kumi {
namespace {

// A row this long is summed in f32, in vector lanes: its rounding error stays around 1e-6.
constexpr int64_t kLongestF32Sum = 4096;
// Columns summed together by one task, as in the column kernels of codegen/group_lowering.cpp.
constexpr int64_t kColumnBlock = 16;
// sum_of_squares: so many partial sums at most, each of so many elements at least.
constexpr int64_t kPartials = 256;
constexpr int64_t kShortestBlock = 4096;

enum class Kind : uint8_t { kSum, kMean, kMax };

// ---- Axes and shapes.

// From 0 on and sorted; an empty list stands for all axes.
std::vector<int64_t> reduced_axes(const Attributes& attributes, int rank) {
  std::vector<int64_t> axes = axes_attribute(attributes, "axes", rank);
  if (axes.empty())
    for (int axis = 0; axis < rank; ++axis) axes.push_back(axis);
  std::sort(axes.begin(), axes.end());
  return axes;
}

// The shape with ones in place of the reduced axes.
Shape with_ones(Shape shape, const Attributes& attributes) {
  for (int64_t axis : reduced_axes(attributes, static_cast<int>(shape.size()))) shape[axis] = 1;
  return shape;
}

Dim reduced_count(const Shape& shape, const Attributes& attributes) {
  Dim count(1);
  for (int64_t axis : reduced_axes(attributes, static_cast<int>(shape.size()))) count = count * shape[axis];
  return count;
}

std::vector<Type> infer_reduction(const InferContext& context) {
  context.require_floating(0);
  const Type& x = context.operand(0);
  require_axes(context, shape_attribute(context.attributes, "axes"), x);
  std::vector<int64_t> axes = reduced_axes(context.attributes, x.rank());
  Type result{x.dtype, {}};
  for (int64_t axis = 0; axis < x.rank(); ++axis) {
    bool reduced = std::binary_search(axes.begin(), axes.end(), axis);
    if (reduced && bool_attribute(context.attributes, "keep_axes"))
      result.shape.push_back(1);
    else if (!reduced)
      result.shape.push_back(x.shape[axis]);
  }
  return {result};
}

Fusion fusion_of_reduction(const Graph& graph, const Node& node, bool has_column_form) {
  int rank = graph.type(node.operands[0]).rank();
  if (rank == 0) return Fusion::kPointwise;
  std::vector<int64_t> axes = reduced_axes(node.attributes, rank);
  if (axes.size() == 1 && axes[0] == rank - 1) return Fusion::kRow;
  bool is_prefix = axes.back() == static_cast<int64_t>(axes.size()) - 1 && axes.back() < rank - 1;
  return is_prefix && has_column_form ? Fusion::kColumn : Fusion::kOpaque;
}

// ---- Gradient rules.

// A value of the result's shape as one of the operand's rank, with ones for the reduced axes.
ValueId keep_axes(GradientContext& context, ValueId value) {
  Shape shape = with_ones(context.type(context.operand(0)).shape, context.node.attributes);
  return context.type(value).shape == shape ? value : context.builder.reshape(value, shape);
}

std::vector<ValueId> gradient_of_sum(GradientContext& context, Kind kind) {
  Type x = context.type(context.operand(0));
  ValueId dy = keep_axes(context, context.gradient());
  if (kind == Kind::kMean) {
    double count = static_cast<double>(reduced_count(x.shape, context.node.attributes).number());
    dy = context.builder.multiply(dy, 1 / count);
  }
  if (context.type(dy).shape != x.shape) dy = context.builder.call("broadcast", {dy}, {{"shape", x.shape}});
  return {dy};
}

// Elements that are equally large share the gradient.
std::vector<ValueId> gradient_of_max(GradientContext& context) {
  GraphBuilder& builder = context.builder;
  ValueId x = context.operand(0);
  Type type = context.type(x);
  auto scalar = [&](double value) { return builder.constant(value, {}, type.dtype); };
  ValueId largest = builder.call("equal", {x, keep_axes(context, context.result(0))});
  ValueId counted = builder.call("select", {largest, scalar(1), scalar(0)});
  Attribute axes = shape_attribute(context.node.attributes, "axes");
  ValueId count = builder.call("sum", {counted}, {{"axes", axes}, {"keep_axes", true}});
  ValueId share = builder.divide(keep_axes(context, context.gradient()), count);
  return {builder.call("select", {largest, share, scalar(0)})};
}

// ---- Kernels.

// The mean's factor, the result's type.
Expr finish(const KernelLowering& k, Kind kind, const Expr& total) {
  DType dtype = total.dtype();
  Expr value = total;
  if (kind == Kind::kMean) {
    double count = static_cast<double>(reduced_count(k.operand_type(0).shape, k.attributes()).number());
    value = value * constant(dtype, 1 / count);
  }
  return k.result_type(0).dtype == DType::F64 ? value : cast(DType::F32, value);
}

void lower_row(KernelLowering& k, Kind kind) {
  ColumnFunction x = k.row(0);
  if (kind == Kind::kMax) {
    k.row_value_result(0, k.reduce_row(Reduction::kMax, x));
    return;
  }
  bool is_long = k.columns() > kLongestF32Sum;
  Expr total = k.reduce_row(Reduction::kSum, [&](Expr c) { return is_long ? cast(DType::F64, x(c)) : x(c); });
  k.row_value_result(0, finish(k, kind, total));
}

// Adjacent axes of one role, as one.
struct MergedAxis {
  int64_t size = 1;
  int64_t stride = 1;
  bool reduced = false;
};

std::vector<MergedAxis> merged_axes(const KernelLowering& k) {
  std::vector<int64_t> shape = k.operand_shape(0), strides = row_major_strides(shape);
  std::vector<int64_t> reduced = reduced_axes(k.attributes(), static_cast<int>(shape.size()));
  std::vector<MergedAxis> merged;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    bool is_reduced = std::binary_search(reduced.begin(), reduced.end(), static_cast<int64_t>(axis));
    if (shape[axis] == 1) continue;
    if (!merged.empty() && merged.back().reduced == is_reduced) {
      merged.back().size *= shape[axis];
      merged.back().stride = strides[axis];
    } else {
      merged.push_back({shape[axis], strides[axis], is_reduced});
    }
  }
  return merged;
}

// The offset of element `linear` of the space of these axes, row-major.
Expr offset_of(Expr linear, const std::vector<MergedAxis>& axes) {
  Expr offset = 0;
  for (size_t i = axes.size(); i-- > 0;) {
    offset = offset + (i == 0 ? linear : linear % Expr(axes[i].size)) * Expr(axes[i].stride);
    if (i > 0) linear = linear / Expr(axes[i].size);
  }
  return offset;
}

void loop_over(KernelBuilder& k, const std::vector<MergedAxis>& axes, Expr offset,
               const std::function<void(Expr)>& body) {
  if (axes.empty()) {
    body(std::move(offset));
    return;
  }
  std::vector<MergedAxis> rest(axes.begin() + 1, axes.end());
  k.loop(0, axes[0].size, LoopKind::kSerial,
         [&](Expr i) { loop_over(k, rest, k.let("offset", offset + i * Expr(axes[0].stride)), body); });
}

class OpaqueReduction {
 public:
  OpaqueReduction(KernelLowering& lowering, Kind kind)
      : lowering_(lowering),
        k_(lowering.builder()),
        kind_(kind),
        x_(lowering.operand_buffer(0)),
        y_(lowering.result_buffer(0)),
        work_(element_count(lowering.operand_type(0).shape).number()),
        dtype_(kind == Kind::kMax && x_.dtype != DType::F64 ? DType::F32 : DType::F64) {
    for (const MergedAxis& axis : merged_axes(lowering)) (axis.reduced ? reduced_ : kept_).push_back(axis);
    kept_last_ = !kept_.empty() && kept_.back().stride == 1;
  }

  void lower() {
    if (kept_last_ && lowering_.is_simt())
      lower_columns_on_grid();
    else if (kept_last_)
      lower_columns();
    else
      lower_rows();
  }

 private:
  Expr initial() const { return constant(dtype_, kind_ == Kind::kMax ? -INFINITY : 0); }
  Expr element(Expr at) const { return cast(dtype_, x_[std::move(at)]); }
  Expr combined(Expr a, Expr b) const { return kind_ == Kind::kMax ? maximum(a, b) : a + b; }

  static int64_t size_of(const std::vector<MergedAxis>& axes) {
    int64_t size = 1;
    for (const MergedAxis& axis : axes) size *= axis.size;
    return size;
  }

  // The last axis is reduced: a task for each result.
  void lower_rows() {
    std::vector<MergedAxis> outer = reduced_;
    MergedAxis inner;
    if (!outer.empty()) {
      inner = outer.back();
      outer.pop_back();
    }
    Reduction reduction = kind_ == Kind::kMax ? Reduction::kMax : Reduction::kSum;
    k_.parallel(size_of(kept_), work_, [&](Expr task) {
      Local total = k_.local("total", dtype_, initial());
      loop_over(k_, outer, k_.let("base", offset_of(task, kept_)), [&](Expr base) {
        Expr part = k_.reduce(reduction, 0, inner.size,
                              [&](Expr c) { return element(base + c * Expr(inner.stride)); });
        k_.assign(total, combined(total.value(), part));
      });
      k_.store(y_, task, finish(lowering_, kind_, total.value()));
    });
  }

  // The last axis is kept: a task for each block of its elements.
  void lower_columns() {
    std::vector<MergedAxis> outer(kept_.begin(), kept_.end() - 1);
    int64_t columns = kept_.back().size, blocks = (columns + kColumnBlock - 1) / kColumnBlock;
    k_.parallel(size_of(outer) * blocks, work_, [&](Expr task) {
      Expr first = k_.let("first_column", task % Expr(blocks) * Expr(kColumnBlock));
      Expr width = columns % kColumnBlock == 0
                       ? Expr(kColumnBlock)
                       : k_.let("width", minimum(Expr(kColumnBlock), Expr(columns) - first));
      Expr row = k_.let("row", task / Expr(blocks));
      Buffer totals = k_.array("totals", dtype_, kColumnBlock);
      k_.loop(0, width, LoopKind::kVector, [&](Expr j) { k_.store(totals, j, initial()); });
      loop_over(k_, reduced_, k_.let("base", offset_of(row, outer) + first), [&](Expr base) {
        k_.loop(0, width, LoopKind::kVector,
                [&](Expr j) { k_.store(totals, j, combined(totals[j], element(base + j))); });
      });
      k_.loop(0, width, LoopKind::kVector, [&](Expr j) {
        k_.store(y_, row * Expr(columns) + first + j, finish(lowering_, kind_, totals[j]));
      });
    });
  }

  // The same for the threads of a GPU: all that is kept are columns.
  void lower_columns_on_grid() {
    const Reduction reduction = kind_ == Kind::kMax ? Reduction::kMax : Reduction::kSum;
    reduce_columns_on_grid(
        k_, {reduction, size_of(reduced_), size_of(kept_), dtype_, work_}, y_,
        [&](Expr row, Expr column) {
          return element(offset_of(std::move(row), reduced_) + offset_of(std::move(column), kept_));
        },
        [&](Expr total) { return finish(lowering_, kind_, total); });
  }

  KernelLowering& lowering_;
  KernelBuilder& k_;
  Kind kind_;
  Buffer x_, y_;
  int64_t work_;
  DType dtype_;  // in which it accumulates
  std::vector<MergedAxis> kept_, reduced_;
  bool kept_last_ = false;
};

void lower_reduction(KernelLowering& k, Kind kind) {
  switch (fusion_of_reduction(k.graph(), k.node(), kind != Kind::kMax)) {
    case Fusion::kPointwise:
      k.pointwise([](const std::vector<Expr>& x) { return std::vector<Expr>{x[0]}; });
      break;
    case Fusion::kRow:
      lower_row(k, kind);
      break;
    case Fusion::kColumn:
      k.column_sum(nullptr, [&k, kind](Expr total) { return finish(k, kind, total); });
      break;
    default:
      OpaqueReduction(k, kind).lower();
  }
}

// ---- References.

void reference_reduction(const ReferenceContext& context, Kind kind) {
  const ReferenceTensor& x = context.operand(0);
  ReferenceTensor& y = context.result();
  std::vector<int64_t> axes = reduced_axes(context.node.attributes, static_cast<int>(x.shape.size()));
  std::vector<int64_t> kept_shape = x.shape;
  for (int64_t axis : axes) kept_shape[axis] = 1;
  if (kind == Kind::kMax) std::fill(y.data.begin(), y.data.end(), -INFINITY);
  double count = static_cast<double>(x.size()) / static_cast<double>(y.size());
  for (int64_t i = 0; i < x.size(); ++i) {
    double& total = y.data[broadcast_position(index_at(i, x.shape), kept_shape)];
    if (kind == Kind::kMax)
      total = std::max(total, x.data[i]);
    else
      total += kind == Kind::kMean ? x.data[i] / count : x.data[i];
  }
}

double one_an_element(const Graph& graph, const Node& node) {
  return static_cast<double>(element_count(graph.type(node.operands[0]).shape).number());
}

void register_reduction(const std::string& name, Kind kind, const std::string& doc) {
  register_op({
      .name = name,
      .family = "reduction",
      .doc = doc,
      .operands = {{"x", "any floating type"}},
      .attributes = {{"axes",
                      AttributeKind::kShape,
                      "which axes; negative ones count from the end; empty: all",
                      Attribute(Shape{}),
                      {}},
                     {"keep_axes",
                      AttributeKind::kBool,
                      "leave axes of size 1 in place of the reduced ones",
                      Attribute(false),
                      {}}},
      .infer = infer_reduction,
      .gradient =
          [kind](GradientContext& context) {
            return kind == Kind::kMax ? gradient_of_max(context) : gradient_of_sum(context, kind);
          },
      .flops = one_an_element,
      .reference = [kind](const ReferenceContext& context) { reference_reduction(context, kind); },
      .fusion_of = [kind](const Graph& graph,
                          const Node& node) { return fusion_of_reduction(graph, node, kind != Kind::kMax); },
      .kernel = [kind](KernelLowering& k) { lower_reduction(k, kind); },
  });
}

// ---- sum_of_squares: partial sums of blocks, then their sum.

int64_t block_size(int64_t count) {
  return std::max(kShortestBlock, (count + kPartials - 1) / kPartials);
}

void lower_sum_of_squares(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  int64_t count = element_count(lowering.operand_type(0).shape).number(), block = block_size(count);
  Buffer x = lowering.operand_buffer(0), result = lowering.result_buffer(0),
         partials = lowering.result_buffer(1);
  k.parallel(kPartials, 2 * count, [&](Expr i) {
    Expr begin = k.let("begin", i * Expr(block));
    Expr end = k.let("end", minimum(begin + Expr(block), Expr(count)));
    Expr total = k.reduce(Reduction::kSum, begin, end, [&](Expr at) {
      Expr value = k.let("value", cast(DType::F64, x[at]));
      return value * value;
    });
    k.store(partials, i, total);
  });
  k.serial([&] {
    Expr total = k.reduce(Reduction::kSum, 0, kPartials, [&](Expr i) { return partials[i]; });
    k.store(result, 0, cast(DType::F32, total));
  });
}

void reference_sum_of_squares(const ReferenceContext& context) {
  const ReferenceTensor& x = context.operand(0);
  int64_t block = block_size(x.size());
  for (int64_t i = 0; i < x.size(); ++i) {
    double square = x.data[i] * x.data[i];
    context.result(0).data[0] += square;
    context.result(1).data[i / block] += square;
  }
}

}  // namespace

void register_reduction_ops() {
  register_reduction("sum", Kind::kSum, "The sum over axes.");
  register_reduction("mean", Kind::kMean, "The mean over axes.");
  register_reduction("max", Kind::kMax,
                     "The largest element over axes. Elements that are equally large share the gradient.");
  register_op({
      .name = "sum_of_squares",
      .family = "reduction",
      .doc = "The sum of the squares of all elements, accumulated in f64, and the sums of up to 256 blocks "
             "of which it is made (0 where there are fewer). Not differentiable: it is for the norm of "
             "gradients; a loss uses sum(square(x)).",
      .operands = {{"x", "any floating type"}},
      .results = {"result", "partials"},
      .infer =
          [](const InferContext& context) {
            context.require_floating(0);
            return std::vector<Type>{{DType::F32, {}}, {DType::F64, {Dim(kPartials)}}};
          },
      .flops = [](const Graph& graph, const Node& node) { return 2 * one_an_element(graph, node); },
      .reference = reference_sum_of_squares,
      .kernel = lower_sum_of_squares,
  });
}

}  // namespace kumi
