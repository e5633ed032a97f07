// How an op says what its kernel computes. One object a node; the op's `kernel` function calls the
// one group of methods that fits its Fusion kind. What the group of fused nodes makes of it (loops,
// what is stored, what stays in registers) is decided by group_lowering.cpp, not by the op.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "codegen/kernel_builder.h"
#include "graph/graph.h"

namespace kumi {

using Index = std::vector<Expr>;  // one i64 expression an axis
using ElementFunction = std::function<Expr(const Index&)>;
using ColumnFunction = std::function<Expr(Expr)>;  // by the index on the last axis

// A value in memory: sizes, and elements from one index to the next, one of each an axis.
struct StridedShape {
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
};

inline StridedShape strided_shape(const Value& value) {
  return {numbers(value.type.shape), strides_of(value)};
}

class KernelLowering {
 public:
  KernelLowering(const Graph& graph, const Node& node) : graph_(graph), node_(node) {}
  virtual ~KernelLowering() = default;

  const Graph& graph() const { return graph_; }
  const Node& node() const { return node_; }
  const Attributes& attributes() const { return node_.attributes; }
  bool has_operand(size_t i) const { return i < node_.operands.size() && node_.operands[i] != kNone; }
  const Type& operand_type(size_t i) const { return graph_.type(node_.operands[i]); }
  const Type& result_type(size_t i) const { return graph_.type(node_.results[i]); }
  std::vector<int64_t> operand_shape(size_t i) const { return numbers(operand_type(i).shape); }
  std::vector<int64_t> result_shape(size_t i) const { return numbers(result_type(i).shape); }
  StridedShape operand_layout(size_t i) const { return strided_shape(graph_.values[node_.operands[i]]); }
  StridedShape result_layout(size_t i) const { return strided_shape(graph_.values[node_.results[i]]); }

  // Will the kernel run on the threads of a GPU, which share loops over elements (simt_schedule.h)?
  virtual bool is_simt() const = 0;

  // ---- kPointwise: results at an element from the (broadcast) operands at that element.
  using PointwiseFunction = std::function<std::vector<Expr>(const std::vector<Expr>&)>;
  virtual void pointwise(PointwiseFunction function) = 0;

  // ---- kIndexing: the result at an index (of the result's rank), reading operands anywhere.
  // read(i, index): operand i at an index of the operand's own rank.
  virtual Expr read(size_t operand, const Index& index) = 0;
  virtual void indexing(ElementFunction function) = 0;

  // ---- kRow: one row of the last axis at a time. The row space is the shape of operand 0.
  // Called once, at the point where the row's body is written: reductions emit their loop there.
  virtual int64_t columns() const = 0;
  virtual ColumnFunction row(size_t operand) = 0;     // operand shaped like the row space
  virtual ColumnFunction shared(size_t operand) = 0;  // operand [columns], the same for every row
  virtual Expr row_value(size_t operand) = 0;  // operand [leading axes] or [leading axes, 1]; or a scalar
  virtual Expr reduce_row(Reduction reduction, const ColumnFunction& element) = 0;
  virtual Expr let(const std::string& wish, Expr value) = 0;           // computed once a row
  virtual void row_result(size_t result, ColumnFunction element) = 0;  // shaped like the row space
  virtual void row_value_result(size_t result, Expr value) = 0;        // [leading axes] or [..., 1]

  // ---- kColumn: result = sum over the leading axes (those the node's result lacks) of element
  // (operand 0), element by element; `finish` is applied to each sum (identity if empty).
  virtual void column_sum(std::function<Expr(Expr)> element, std::function<Expr(Expr)> finish) = 0;

  // ---- kOpaque: the whole kernel, written by the op. Buffers are row-major and contiguous, unless the op
  // takes parts of larger values (OpDef::takes_strides): then they are as the layouts above say.
  virtual KernelBuilder& builder() = 0;
  virtual Buffer operand_buffer(size_t operand) = 0;
  virtual Buffer result_buffer(size_t result) = 0;

 private:
  const Graph& graph_;
  const Node& node_;
};

// sum of index[i] * stride[i].
Expr linear_index(const Index& index, const StridedShape& operand);

}  // namespace kumi
