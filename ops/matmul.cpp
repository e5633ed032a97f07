// Matrix products, left to the device's library.
//
// One op covers a linear layer (2-D weight, leading axes of the activations flattened into rows) and
// batched products. The transposes are strides of the call, so that neither the forward product nor
// its two gradients ever materialise a transposed matrix:
//   y = a b:  da = dy b^T,  db = a^T dy,  and accordingly for the three other combinations.
#include "codegen/kernel.h"
#include "graph/op.h"
#include "ops/families.h"

namespace kumi {
namespace {

// A product's sizes: [lead..., m, n] = [lead..., m, k] x [k, n] or [lead..., k, n].
struct Product {
  std::vector<int64_t> lead;
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  bool batched_b = false;

  int64_t batch() const {
    int64_t count = 1;
    for (int64_t size : lead) count *= size;
    return count;
  }
};

Product product_of(const std::vector<int64_t>& a, const std::vector<int64_t>& b,
                   const Attributes& attributes) {
  Product p;
  p.transpose_a = bool_attribute(attributes, "transpose_a");
  p.transpose_b = bool_attribute(attributes, "transpose_b");
  p.lead.assign(a.begin(), a.end() - 2);
  p.m = a[a.size() - (p.transpose_a ? 1 : 2)];
  p.k = a[a.size() - (p.transpose_a ? 2 : 1)];
  p.n = b[b.size() - (p.transpose_b ? 2 : 1)];
  p.batched_b = b.size() > 2;
  return p;
}

Product product_of(const Graph& graph, const Node& node) {
  return product_of(numbers(graph.type(node.operands[0]).shape), numbers(graph.type(node.operands[1]).shape),
                    node.attributes);
}

constexpr size_t kAddend = 3;

bool has_bias(const Node& node) {
  return node.operands.size() > 2 && node.operands[2] != kNone;
}

bool has_addend(const Node& node) {
  return node.operands.size() > kAddend && node.operands[kAddend] != kNone;
}

std::vector<Type> infer_matmul(const InferContext& context) {
  const Type& a = context.operand(0);
  const Type& b = context.operand(1);
  for (size_t i = 0; i < 2; ++i) {
    context.require_floating(i);
    if (context.operand(i).rank() < 2)
      context.fail(
          concat("'", i == 0 ? "a" : "b", "' needs at least two axes, found ", display(context.operand(i))));
  }
  if (a.dtype != b.dtype)
    context.fail(concat("element types differ: ", to_string(a.dtype), " and ", to_string(b.dtype)));
  bool transpose_a = bool_attribute(context.attributes, "transpose_a");
  bool transpose_b = bool_attribute(context.attributes, "transpose_b");
  const Dim& m = a.shape[a.rank() - (transpose_a ? 1 : 2)];
  const Dim& k = a.shape[a.rank() - (transpose_a ? 2 : 1)];
  const Dim& n = b.shape[b.rank() - (transpose_b ? 2 : 1)];
  context.require_equal(k, b.shape[b.rank() - (transpose_b ? 1 : 2)], "inner dimensions");
  Shape lead(a.shape.begin(), a.shape.end() - 2);
  if (b.rank() > 2 && lead != Shape(b.shape.begin(), b.shape.end() - 2))
    context.fail(concat("leading axes differ: ", display(a.shape), " and ", display(b.shape)));
  if (context.has(2)) {
    const Type& bias = context.operand(2);
    context.require_rank(2, 1);
    if (bias.dtype != a.dtype)
      context.fail(concat("element types differ: ", to_string(a.dtype), " and ", to_string(bias.dtype),
                          " of the bias"));
    context.require_equal(n, bias.shape[0], "columns of the product and the bias");
  }
  Shape shape = lead;
  shape.push_back(m);
  shape.push_back(n);
  const Type result{bool_attribute(context.attributes, "f32_result") ? DType::F32 : a.dtype, shape};
  if (context.has(kAddend) && context.operand(kAddend) != result)
    context.fail(concat("'addend' needs the result's type ", display(result), ", found ",
                        display(context.operand(kAddend))));
  return {result};
}

ValueId product(GraphBuilder& builder, ValueId a, bool transpose_a, ValueId b, bool transpose_b) {
  return builder.call("matmul", {a, b}, {{"transpose_a", transpose_a}, {"transpose_b", transpose_b}});
}

// [..., m, k] as [(...)m, k].
ValueId flatten_rows(GraphBuilder& builder, ValueId value) {
  Shape shape = builder.graph().type(value).shape;
  if (shape.size() == 2) return value;
  Dim rows = element_count(Shape(shape.begin(), shape.end() - 1));
  return builder.reshape(value, {rows, shape.back()});
}

std::vector<ValueId> gradient_of_matmul(GradientContext& context) {
  GraphBuilder& builder = context.builder;
  const Attributes& attributes = context.node.attributes;
  bool transpose_a = bool_attribute(attributes, "transpose_a");
  bool transpose_b = bool_attribute(attributes, "transpose_b");
  ValueId a = context.operand(0), b = context.operand(1), dy = context.gradient();
  const DType dtype = context.type(a).dtype;
  if (context.type(dy).dtype != dtype) dy = builder.call("cast", {dy}, {{"dtype", dtype}});
  std::vector<ValueId> gradients(context.node.operands.size(), kNone);
  Shape a_shape = context.type(a).shape, b_shape = context.type(b).shape;

  if (has_addend(context.node) && context.needed[kAddend]) gradients[kAddend] = context.gradient();
  if (has_bias(context.node) && context.needed[2])
    gradients[2] = builder.sum_to(dy, context.type(context.operand(2)).shape);

  if (b_shape.size() == 2 && a_shape.size() > 2) {
    if (!transpose_a) {
      // The rows of all leading axes together make one product.
      if (context.needed[0]) gradients[0] = product(builder, dy, false, b, !transpose_b);
      if (context.needed[1]) {
        ValueId a_rows = flatten_rows(builder, a), dy_rows = flatten_rows(builder, dy);
        gradients[1] = transpose_b ? product(builder, dy_rows, true, a_rows, false)
                                   : product(builder, a_rows, true, dy_rows, false);
      }
      return gradients;
    }
    // a^T has its rows in the last axis: no flattening, so b takes part once for each leading index.
    Shape expanded(a_shape.begin(), a_shape.end() - 2);
    expanded.insert(expanded.end(), b_shape.begin(), b_shape.end());
    b = builder.call("broadcast", {b}, {{"shape", expanded}});
  }
  if (context.needed[0])
    gradients[0] = transpose_a ? product(builder, b, transpose_b, dy, true)
                               : product(builder, dy, false, b, !transpose_b);
  if (context.needed[1]) {
    ValueId db = transpose_b ? product(builder, dy, true, a, transpose_a)
                             : product(builder, a, !transpose_a, dy, false);
    gradients[1] = builder.sum_to(db, b_shape);
  }
  return gradients;
}

// The last two axes and all before them, which the memory pass keeps at one stride.
struct Matrices {
  int64_t batch_stride = 0, row_stride = 0;
};

Matrices matrices_of(const Value& value) {
  const std::vector<int64_t> shape = numbers(value.type.shape), strides = strides_of(value);
  const size_t rank = shape.size();
  Matrices matrices{shape[rank - 2] * shape[rank - 1], strides[rank - 2]};
  for (size_t axis = rank - 2; axis-- > 0;)
    if (shape[axis] != 1) {
      matrices.batch_stride = strides[axis];
      break;
    }
  return matrices;
}

MatmulCall lower_matmul(const Graph& graph, const Node& node) {
  Product p = product_of(graph, node);
  MatmulCall call;
  call.dtype = graph.type(node.operands[0]).dtype;
  call.result_dtype = graph.type(node.results[0]).dtype;
  call.m = p.m;
  call.n = p.n;
  call.k = p.k;
  call.bias = has_bias(node);
  call.accumulate = has_addend(node);
  const Matrices a = matrices_of(graph.values[node.operands[0]]),
                 b = matrices_of(graph.values[node.operands[1]]),
                 c = matrices_of(graph.values[node.results[0]]);
  // Without a batch of b the rows of all leading indices make one product, if they follow each other.
  const bool rows_go_on = a.batch_stride == p.m * a.row_stride && c.batch_stride == p.m * c.row_stride;
  if (!p.batched_b && !p.transpose_a && (p.batch() == 1 || rows_go_on))
    call.m *= p.batch();
  else
    call.batch = p.batch();
  call.a_row_stride = p.transpose_a ? 1 : a.row_stride;
  call.a_column_stride = p.transpose_a ? a.row_stride : 1;
  call.a_batch_stride = a.batch_stride;
  call.b_row_stride = p.transpose_b ? 1 : b.row_stride;
  call.b_column_stride = p.transpose_b ? b.row_stride : 1;
  call.b_batch_stride = p.batched_b ? b.batch_stride : 0;
  call.c_row_stride = c.row_stride;
  call.c_batch_stride = c.batch_stride;
  return call;
}

void reference_matmul(const ReferenceContext& context) {
  const ReferenceTensor& a = context.operand(0);
  const ReferenceTensor& b = context.operand(1);
  ReferenceTensor& y = context.result();
  Product p = product_of(a.shape, b.shape, context.node.attributes);
  for (int64_t l = 0; l < p.batch(); ++l)
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j) {
        double sum = context.has(2) ? context.operand(2).data[j] : 0;
        if (context.has(kAddend)) sum += context.operand(kAddend).data[(l * p.m + i) * p.n + j];
        const double* matrix_a = a.data.data() + l * p.m * p.k;
        const double* matrix_b = b.data.data() + (p.batched_b ? l * p.k * p.n : 0);
        for (int64_t x = 0; x < p.k; ++x)
          sum += (p.transpose_a ? matrix_a[x * p.m + i] : matrix_a[i * p.k + x]) *
                 (p.transpose_b ? matrix_b[j * p.k + x] : matrix_b[x * p.n + j]);
        y.data[(l * p.m + i) * p.n + j] = sum;
      }
}

}  // namespace

void register_matmul_ops() {
  register_op({
      .name = "matmul",
      .family = "matmul",
      .doc =
          "The matrix product y = a b (+ bias) over the last two axes. With a 2-D `b` the leading axes of "
          "`a` "
          "are more rows (a linear layer); otherwise `a` and `b` have the same leading axes and each index "
          "of them is a product of its own. `transpose_a` and `transpose_b` swap the last two axes of an "
          "operand. Accumulates in f32.",
      .operands = {{"a", "[..., m, k], or [..., k, m] with transpose_a"},
                   {"b", "[k, n] or [..., k, n]; the last two swapped with transpose_b"},
                   {"bias", "[n], added to every row", true},
                   {"addend", "of the result's type, added to it; the result may take its place", true}},
      .attributes = {{"transpose_a", AttributeKind::kBool, "a is stored transposed", Attribute(false), {}},
                     {"transpose_b", AttributeKind::kBool, "b is stored transposed", Attribute(false), {}},
                     {"f32_result",
                      AttributeKind::kBool,
                      "the sums in f32, as they are accumulated, whatever the type of a and b",
                      Attribute(false),
                      {}}},
      .infer = infer_matmul,
      .gradient = gradient_of_matmul,
      .flops =
          [](const Graph& graph, const Node& node) {
            Product p = product_of(graph, node);
            double results =
                static_cast<double>(p.batch()) * static_cast<double>(p.m) * static_cast<double>(p.n);
            return 2 * results * static_cast<double>(p.k) + (has_bias(node) ? results : 0) +
                   (has_addend(node) ? results : 0);
          },
      .is_product = true,
      .reference = reference_matmul,
      .precision = OpPrecision::kLow,
      .takes_strides = true,
      .in_place_operand = kAddend,
      .matmul = lower_matmul,
  });
}

}  // namespace kumi
