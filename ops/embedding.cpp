// Token embedding: rows of a table picked by index, and the adjoint, which adds rows into a table.
//
// The adjoint adds the rows of an id in the order of its positions, so the result does not depend on the
// number of threads and no atomics are needed. On a CPU each task has a block of columns. On a GPU the
// positions are sorted by id first, and each row of the table is written once, by the threads that add up all
// of it.
#include <algorithm>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/axes.h"
#include "ops/families.h"

namespace kumi {
namespace {

// Columns of a task of embedding_grad: two cache lines, so that no two tasks write one.
constexpr int64_t kColumnBlock = 32;

std::vector<Type> infer_embedding(const InferContext& context) {
  context.require_dtype(0, DType::I32);
  context.require_floating(1);
  context.require_rank(1, 2);
  Shape shape = context.operand(0).shape;
  shape.push_back(context.operand(1).shape[1]);
  return {{context.operand(1).dtype, shape}};
}

std::vector<Type> infer_embedding_grad(const InferContext& context) {
  context.require_dtype(0, DType::I32);
  context.require_floating(1);
  const Type& ids = context.operand(0);
  const Type& dy = context.operand(1);
  if (dy.rank() != ids.rank() + 1 || Shape(dy.shape.begin(), dy.shape.end() - 1) != ids.shape)
    context.fail(concat("'dy' must have the axes of 'ids' and one more, found ids ", display(ids.shape),
                        " and dy ", display(dy.shape)));
  const Dim rows = dim_attribute(context.attributes, "rows");
  return {{dy.dtype, {rows, dy.shape.back()}},
          {DType::I32, {element_count(ids.shape)}},
          {DType::I32, {rows}},
          {DType::I32, {rows}}};
}

std::vector<ValueId> gradient_of_embedding(GradientContext& context) {
  if (!context.needed[1]) return {kNone, kNone};
  Dim rows = context.type(context.operand(1)).shape[0];
  return {kNone, context.builder.build("embedding_grad", {context.operand(0), context.gradient()},
                                       {{"rows", rows}})[0]};
}

void lower_embedding(KernelLowering& k) {
  k.indexing([&k](const Index& index) {
    Index position(index.begin(), index.end() - 1);
    return k.read(1, {cast(DType::I64, k.read(0, position)), index.back()});
  });
}

// The positions sorted by id, and of every row of the table where its own begin and how many they are.
struct Positions {
  Buffer order, begin, count;
};

// Each position finds its place by itself: after all of smaller ids, and of its own id those before it.
void sort_positions(KernelBuilder& k, const Buffer& ids, const Positions& p, int64_t tokens, int64_t rows) {
  k.parallel(
      rows, rows,
      [&](Expr row) {
        k.store(p.begin, row, Expr(0));
        k.store(p.count, row, Expr(0));
      },
      LoopKind::kVector);
  k.parallel(tokens, 3 * tokens * tokens, [&](Expr token) {
    const Expr id = k.let("id", ids[token]);
    const auto number_of = [&](const std::function<Expr(Expr)>& condition) {
      return k.reduce(Reduction::kSum, 0, tokens,
                      [&](Expr other) { return select(condition(other), Expr(1), Expr(0)); });
    };
    const Expr smaller = number_of([&](Expr other) { return ids[other] < id; });
    const Expr earlier = number_of([&](Expr other) { return ids[other] == id && other < token; });
    const Expr equal = number_of([&](Expr other) { return ids[other] == id; });
    k.store(p.order, smaller + earlier, token);
    k.if_(earlier == Expr(0), [&] {
      k.store(p.begin, cast(DType::I64, id), smaller);
      k.store(p.count, cast(DType::I64, id), equal);
    });
  });
}

void add_sorted(KernelBuilder& k, const Buffer& dy, const Buffer& table, const Positions& p, int64_t tokens,
                int64_t rows, int64_t columns) {
  k.parallel(rows, (rows + tokens) * columns, [&](Expr row) {
    const DType dtype = dy.dtype == DType::F64 ? DType::F64 : DType::F32;
    const Buffer sums = k.array("sums", dtype, columns);
    const auto each = [&](const std::function<void(Expr)>& body) {
      k.loop(0, columns, LoopKind::kVector, body);
    };
    each([&](Expr c) { k.store(sums, c, constant(dtype, 0)); });
    const Expr begin = k.let("begin", cast(DType::I64, p.begin[row]));
    const Expr end = k.let("end", begin + cast(DType::I64, p.count[row]));
    k.loop(begin, end, LoopKind::kSerial, [&](Expr place) {
      const Expr token = k.let("token", cast(DType::I64, p.order[place]));
      each([&](Expr c) { k.store(sums, c, sums[c] + dy[token * columns + c]); });
    });
    each([&](Expr c) { k.store(table, row * columns + c, sums[c]); });
  });
}

void lower_embedding_grad(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  int64_t rows = lowering.result_shape(0)[0], columns = lowering.result_shape(0)[1];
  int64_t tokens = element_count(lowering.operand_type(0).shape).number();
  Buffer ids = lowering.operand_buffer(0), dy = lowering.operand_buffer(1), table = lowering.result_buffer(0);
  if (lowering.is_simt()) {
    const Positions positions = {lowering.result_buffer(1), lowering.result_buffer(2),
                                 lowering.result_buffer(3)};
    sort_positions(k, ids, positions, tokens, rows);
    add_sorted(k, dy, table, positions, tokens, rows, columns);
    return;
  }
  int64_t blocks = (columns + kColumnBlock - 1) / kColumnBlock;
  k.parallel(blocks, (rows + 2 * tokens) * columns, [&](Expr block) {
    Expr begin = k.let("first_column", block * kColumnBlock);
    Expr end = columns % kColumnBlock == 0 ? begin + kColumnBlock : minimum(begin + kColumnBlock, columns);
    end = k.let("end_column", end);
    k.loop(0, rows, LoopKind::kSerial, [&](Expr row) {
      k.loop(begin, end, LoopKind::kVector, [&](Expr c) { k.store(table, row * columns + c, Expr(0.0)); });
    });
    k.loop(0, tokens, LoopKind::kSerial, [&](Expr token) {
      Expr row = k.let("row", cast(DType::I64, ids[token]) * columns);
      k.loop(begin, end, LoopKind::kVector,
             [&](Expr c) { k.store(table, row + c, table[row + c] + dy[token * columns + c]); });
    });
  });
}

void reference_embedding(const ReferenceContext& context) {
  const ReferenceTensor& ids = context.operand(0);
  const ReferenceTensor& table = context.operand(1);
  int64_t columns = table.shape[1];
  for (int64_t i = 0; i < ids.size(); ++i)
    for (int64_t c = 0; c < columns; ++c)
      context.result().data[i * columns + c] = table.data[static_cast<int64_t>(ids.data[i]) * columns + c];
}

void reference_embedding_grad(const ReferenceContext& context) {
  const ReferenceTensor& ids = context.operand(0);
  const ReferenceTensor& dy = context.operand(1);
  int64_t columns = dy.shape.back();
  for (int64_t i = 0; i < ids.size(); ++i)
    for (int64_t c = 0; c < columns; ++c)
      context.result().data[static_cast<int64_t>(ids.data[i]) * columns + c] += dy.data[i * columns + c];
}

}  // namespace

void register_embedding_ops() {
  register_op({
      .name = "embedding",
      .family = "embedding",
      .doc = "Rows of a table: result[..., h] = table[ids[...], h]. Ids outside of the table are found "
             "before the "
             "run, when they are fed.",
      .operands = {{"ids", "i32[...], each in [0, rows of the table)"}, {"table", "[rows, columns]"}},
      .infer = infer_embedding,
      .gradient = gradient_of_embedding,
      .flops = [](const Graph&, const Node&) { return 0.0; },
      .reference = reference_embedding,
      .fusion = Fusion::kIndexing,
      .index_range = [](const Graph& graph, const Node& node, size_t operand) -> std::optional<IndexRange> {
        if (operand != 0) return std::nullopt;
        return IndexRange{graph.type(node.operands[1]).shape[0].number(), std::nullopt};
      },
      .kernel = lower_embedding,
  });
  register_op({
      .name = "embedding_grad",
      .family = "embedding",
      .doc = "The gradient of embedding with respect to the table: zeros[rows, columns], and for every "
             "position, in "
             "order, table[ids[...], h] += dy[..., h]. Adds in the element type of dy. All results but the "
             "first "
             "are for the kernel alone, which may sort the positions by id there.",
      .operands = {{"ids", "i32[...], each in [0, rows)"},
                   {"dy", "[..., columns], gradient of embedding's result"}},
      .attributes = {{"rows", AttributeKind::kInt, "rows of the table", std::nullopt, {}}},
      .results = {"dtable", "positions", "begin", "count"},
      .infer = infer_embedding_grad,
      .flops =
          [](const Graph& graph, const Node& node) {
            return static_cast<double>(element_count(graph.type(node.operands[1]).shape).number());
          },
      .reference = reference_embedding_grad,
      .kernel = lower_embedding_grad,
  });
}

}  // namespace kumi
