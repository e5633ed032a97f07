#include "codegen/group_lowering.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "codegen/column_grid.h"
#include "codegen/iteration_space.h"
#include "graph/op.h"

namespace kumi {
namespace {

// Rows longer than this are computed again instead of being kept in a local array.
constexpr int64_t kLongestLocalRow = 16384;
// Columns summed together by one iteration of a column kernel: two AVX2 vectors of f32.
constexpr int64_t kColumnBlock = 16;
// Rows summed by a column kernel before the sum goes into that of all.
constexpr int64_t kRowBlock = 128;

// "f32[2, 32, 64]", without the names of sizes, so that equal kernels have equal text.
std::string plain(const Type& type) {
  std::string text = to_string(type.dtype) + std::string("[");
  for (size_t i = 0; i < type.shape.size(); ++i) text += (i == 0 ? "" : ", ") + type.shape[i].polynomial();
  return text + "]";
}

class GroupLowering;

// What one node says of itself.
class NodeLowering : public KernelLowering {
 public:
  NodeLowering(GroupLowering& group, const Graph& graph, const Node& node)
      : KernelLowering(graph, node), group_(group) {}

  bool is_simt() const override;
  void pointwise(PointwiseFunction function) override { pointwise_function = std::move(function); }
  Expr read(size_t operand, const Index& index) override;
  void indexing(ElementFunction function) override { indexing_function = std::move(function); }
  int64_t columns() const override;
  ColumnFunction row(size_t operand) override;
  ColumnFunction shared(size_t operand) override { return row(operand); }
  Expr row_value(size_t operand) override;
  Expr reduce_row(Reduction reduction, const ColumnFunction& element) override;
  Expr let(const std::string& wish, Expr value) override;
  void row_result(size_t result, ColumnFunction element) override;
  void row_value_result(size_t result, Expr value) override;
  void column_sum(std::function<Expr(Expr)> element, std::function<Expr(Expr)> finish) override {
    column_element = std::move(element);
    column_finish = std::move(finish);
  }
  KernelBuilder& builder() override;
  Buffer operand_buffer(size_t operand) override;
  Buffer result_buffer(size_t result) override;

  PointwiseFunction pointwise_function;
  ElementFunction indexing_function;
  std::map<size_t, ColumnFunction> row_functions;  // by result
  std::function<Expr(Expr)> column_element, column_finish;

 private:
  GroupLowering& group_;
};

class GroupLowering {
 public:
  GroupLowering(const Graph& graph, const Uses& uses, const std::vector<NodeId>& nodes,
                const Dialect& dialect)
      : graph_(graph), uses_(uses), nodes_(nodes), dialect_(dialect), builder_(kernel_name()) {
    for (NodeId n : nodes_) {
      lowerings_[n] = std::make_unique<NodeLowering>(*this, graph_, graph_.nodes[n]);
      for (ValueId result : graph_.nodes[n].results) inside_[result] = n;
    }
  }

  LoweredGroup lower() {
    Fusion strongest = Fusion::kPointwise;
    for (NodeId n : nodes_) {
      Fusion fusion = fusion_of(graph_, graph_.nodes[n]);
      if (fusion == Fusion::kIndexing) merge_ = false;
      if (fusion == Fusion::kRow || fusion == Fusion::kColumn || fusion == Fusion::kOpaque)
        strongest = fusion;
    }
    std::string operations;
    for (NodeId n : nodes_) {
      const Node& node = graph_.nodes[n];
      operations = node.op + ":";
      for (ValueId operand : node.operands)
        operations += operand == kNone ? " -" : " " + plain(graph_.type(operand));
      operations += " ->";
      for (ValueId result : node.results) operations += " " + plain(graph_.type(result));
      for (const auto& [name, value] : node.attributes)
        if (!std::holds_alternative<Shape>(value)) operations += ", " + name + " = " + to_string(value);
      builder_.program().comments.push_back(operations);
    }
    memo_.emplace_back();
    switch (strongest) {
      case Fusion::kOpaque:
        lower_opaque();
        break;
      case Fusion::kRow:
        lower_rows();
        break;
      case Fusion::kColumn:
        lower_columns();
        break;
      default:
        lower_flat();
    }
    return {std::move(builder_.program()), std::move(buffer_values_)};
  }

  // ---- services to NodeLowering

  KernelBuilder& builder() { return builder_; }
  bool is_simt() const { return dialect_.is_simt; }
  int64_t columns() const { return space_->shape().empty() ? 1 : space_->shape().back(); }

  Buffer buffer(ValueId value, bool written) {
    const std::optional<Placement>& placement = graph_.values[value].placement;
    for (size_t i = 0; i < buffer_values_.size(); ++i) {
      bool same = buffer_values_[i] == value ||
                  (placement && graph_.values[buffer_values_[i]].placement == placement &&
                   graph_.type(buffer_values_[i]).dtype == graph_.type(value).dtype);
      if (!same) continue;
      builder_.program().buffers[i].written |= written;
      return buffers_[i];
    }
    Buffer buffer = builder_.buffer(written ? graph_.producer(value).op : operand_name(value),
                                    graph_.type(value).dtype, written, plain(graph_.type(value)));
    buffers_.push_back(buffer);
    buffer_values_.push_back(value);
    return buffer;
  }

  // The value at an index: of the iteration space's merged axes, or (without merging) of its own axes.
  Expr element(ValueId value, const Index& index) {
    if (auto found = row_values_.find(value); found != row_values_.end() && !elsewhere_) return found->second;
    if (graph_.producer(value).op == "constant") return constant(graph_.producer(value));
    std::vector<const ExprNode*> key;
    for (const Expr& e : index) key.push_back(e.get());
    for (size_t level = memo_.size(); level-- > 0;)
      if (auto found = memo_[level].find({value, key}); found != memo_[level].end()) return found->second;

    auto inside = inside_.find(value);
    if (inside == inside_.end() || (stored_.count(value) != 0 && !elsewhere_)) {
      Buffer source = inside == inside_.end() ? buffer(value, false) : stored_.at(value).buffer;
      Expr address =
          inside != inside_.end() && stored_.at(value).is_local ? index.back() : address_of(value, index);
      return remember(value, key, builder_.let(source.name + "_at", source[address]), index);
    }
    NodeLowering& lowering = *lowerings_.at(inside->second);
    const Node& node = lowering.node();
    size_t position = std::find(node.results.begin(), node.results.end(), value) - node.results.begin();
    if (auto function = lowering.row_functions.find(position); function != lowering.row_functions.end())
      return remember(value, key, builder_.let(node.op, function->second(index.back())), index);
    describe(lowering);
    if (lowering.indexing_function)
      return remember(value, key, builder_.let(node.op, lowering.indexing_function(index)), index);
    std::vector<Expr> operands;
    for (ValueId operand : node.operands)
      operands.push_back(element(operand, operand_index(value, operand, index)));
    std::vector<Expr> results = lowering.pointwise_function(operands);
    Expr wanted;
    for (size_t i = 0; i < results.size(); ++i) {
      if (node.results[i] != value && uses_.consumers[node.results[i]].empty() &&
          !uses_.is_output[node.results[i]])
        continue;
      Expr result = remember(node.results[i], key, builder_.let(node.op, results[i]), index);
      if (node.results[i] == value) wanted = result;
    }
    return wanted;
  }

  // For indexing ops: any element, not only that of the current row. What is known or stored of the
  // current row is then of no use: the element is computed again, from memory.
  Expr element_elsewhere(ValueId value, const Index& index) {
    const bool outer = std::exchange(elsewhere_, true);
    Expr result = element(value, index);
    elsewhere_ = outer;
    return result;
  }

  ColumnFunction row_function(ValueId value) {
    return [this, value](Expr column) {
      Index index = row_index_;
      index.push_back(column);
      return element(value, operand_index_in_space(value, index));
    };
  }

  Expr row_value(ValueId value) {
    if (auto found = row_values_.find(value); found != row_values_.end()) return found->second;
    if (graph_.producer(value).op == "constant") return constant(graph_.producer(value));
    Buffer source = buffer(value, false);
    Expr loaded = builder_.let(source.name + "_at", source[row_value_address(value)]);
    row_values_[value] = loaded;
    return loaded;
  }

  Expr reduce_row(Reduction reduction, const ColumnFunction& function) {
    memo_.emplace_back();
    Expr result = builder_.reduce(reduction, 0, columns(), function);
    memo_.pop_back();
    return result;
  }

  void set_row_value(ValueId value, Expr expr) {
    row_values_[value] = builder_.let(graph_.producer(value).op, std::move(expr));
    if (is_stored(value)) builder_.store(buffer(value, true), row_value_address(value), row_values_[value]);
  }

 private:
  struct StoredRow {
    Buffer buffer;
    bool is_local = false;
  };

  std::string kernel_name() const {
    constexpr size_t kMostNames = 5;
    std::string name;
    for (size_t i = 0; i < nodes_.size() && i < kMostNames; ++i)
      name += (i == 0 ? "" : "__") + graph_.nodes[nodes_[i]].op;
    if (nodes_.size() > kMostNames) name += "__and_" + std::to_string(nodes_.size() - kMostNames) + "_more";
    return name;
  }

  // Named after the role in which the group first uses it.
  std::string operand_name(ValueId value) const {
    for (NodeId n : nodes_) {
      const Node& node = graph_.nodes[n];
      const std::vector<OperandSpec>& specs = op_of(node).operands;
      for (size_t i = 0; i < node.operands.size(); ++i)
        if (node.operands[i] == value && !specs.empty()) return specs[std::min(i, specs.size() - 1)].name;
    }
    return "x";
  }

  // True if the value is needed in memory: by another kernel, by a write or as an output.
  bool is_stored(ValueId value) const {
    if (uses_.is_output[value]) return true;
    for (NodeId consumer : uses_.consumers[value])
      if (lowerings_.count(consumer) == 0) return true;
    return false;
  }

  Expr constant(const Node& node) const {
    return kumi::constant(graph_.type(node.results[0]).dtype, float_attribute(node.attributes, "value"));
  }

  Expr remember(ValueId value, const std::vector<const ExprNode*>& key, Expr expr, const Index& index) {
    memo_.back()[{value, key}] = expr;
    kept_alive_.push_back(index);  // keys are addresses; their nodes must not be freed and reused
    return expr;
  }

  void describe(NodeLowering& lowering) {
    if (lowering.pointwise_function || lowering.indexing_function || lowering.column_element) return;
    op_of(lowering.node()).kernel(lowering);
  }

  Expr address_of(ValueId value, const Index& index) const {
    const StridedShape layout = strided_shape(graph_.values[value]);
    return merge_ ? space_->address(index, layout) : linear_index(index, layout);
  }

  // Index of an element-wise op's operand from that of its result: the trailing axes, 0 on axes of size 1.
  Index operand_index(ValueId result, ValueId operand, const Index& index) const {
    if (merge_) return index;
    return broadcast_index(numbers(graph_.type(operand).shape), graph_.type(result).rank(), index);
  }

  Index operand_index_in_space(ValueId operand, const Index& index) const {
    if (merge_) return index;
    return broadcast_index(numbers(graph_.type(operand).shape), static_cast<int>(space_->shape().size()),
                           index);
  }

  static Index broadcast_index(const std::vector<int64_t>& shape, int from_rank, const Index& index) {
    Index own;
    for (size_t i = 0; i < shape.size(); ++i) {
      const Expr& at = index[from_rank - shape.size() + i];
      own.push_back(shape[i] == 1 && at.node().kind != ExprNode::kInteger ? Expr(0) : at);
    }
    return own;
  }

  Expr row_value_address(ValueId value) const {
    Index index = row_index_;
    index.push_back(Expr(0));
    return space_->address(index, row_value_layout(value, space_->shape().size()));
  }

  // A value for each row may be written without the last axis or with one of size 1.
  StridedShape row_value_layout(ValueId value, size_t rank) const {
    StridedShape layout = strided_shape(graph_.values[value]);
    if (!layout.shape.empty() && layout.shape.size() + 1 == rank) {
      layout.shape.push_back(1);
      layout.strides.push_back(0);
    }
    return layout;
  }

  // The space over `shape`, with every value that the group reads or stores.
  void make_space(const std::vector<int64_t>& shape, const std::vector<int>& barriers) {
    std::vector<StridedShape> operands;
    auto add = [&](ValueId value, bool per_row) {
      StridedShape own =
          per_row ? row_value_layout(value, shape.size()) : strided_shape(graph_.values[value]);
      if (own.shape.size() <= shape.size()) operands.push_back(std::move(own));
    };
    for (NodeId n : nodes_) {
      bool row = fusion_of(graph_, graph_.nodes[n]) == Fusion::kRow;
      for (ValueId operand : graph_.nodes[n].operands)
        if (operand != kNone) add(operand, row);
      for (ValueId result : graph_.nodes[n].results) add(result, row);
    }
    space_ = std::make_unique<IterationSpace>(shape, operands, barriers, merge_);
  }

  void lower_opaque() {
    NodeLowering& lowering = *lowerings_.at(nodes_[0]);
    op_of(lowering.node()).kernel(lowering);
  }

  // All are computed before the first is stored: a value may take the place of one that is read.
  void store_all(const std::vector<ValueId>& values, const Index& index) {
    std::vector<Expr> elements;
    for (ValueId value : values) elements.push_back(element(value, index));
    for (size_t i = 0; i < values.size(); ++i)
      builder_.store(buffer(values[i], true), address_of(values[i], index), elements[i]);
  }

  double element_count() const {
    double count = 1;
    for (int64_t size : space_->shape()) count *= static_cast<double>(size);
    return count;
  }

  int64_t work() const { return static_cast<int64_t>(element_count() * static_cast<double>(nodes_.size())); }

  void lower_flat() {
    std::vector<ValueId> stored;
    for (NodeId n : nodes_)
      for (ValueId result : graph_.nodes[n].results)
        if (is_stored(result)) stored.push_back(result);
    make_space(numbers(graph_.type(stored.at(0)).shape), {});
    const std::vector<int64_t>& merged = space_->merged();
    if (merged.size() == 1) {
      builder_.parallel(
          merged[0], work(), [&](Expr i) { store_all(stored, space_->shape().empty() ? Index{} : Index{i}); },
          LoopKind::kVector);
      return;
    }
    int last = space_->merged_rank() - 1;
    int64_t rows = 1;
    for (int i = 0; i < last; ++i) rows *= merged[i];
    builder_.parallel(rows, work(), [&](Expr row) {
      Index index = leading_index(row, last);
      builder_.loop(0, merged[last], LoopKind::kVector, [&](Expr column) {
        memo_.emplace_back();
        Index full = index;
        full.push_back(column);
        store_all(stored, full);
        memo_.pop_back();
      });
    });
  }

  Index leading_index(Expr row, int last) {
    Index index = space_->unflatten(row, 0, last);
    if (index.size() > 1)
      for (Expr& e : index) e = builder_.let("i", e);
    return index;
  }

  void lower_rows() {
    std::vector<int64_t> shape;
    for (NodeId n : nodes_)
      if (fusion_of(graph_, graph_.nodes[n]) == Fusion::kRow)
        shape = numbers(graph_.type(graph_.nodes[n].operands[0]).shape);
    make_space(shape, {static_cast<int>(shape.size()) - 1});
    int last = space_->merged_rank() - 1;
    int64_t rows = 1;
    for (int i = 0; i < last; ++i) rows *= space_->merged()[i];
    builder_.parallel(rows, work(), [&](Expr row) {
      row_index_ = leading_index(row, last);
      std::vector<ValueId> pending;
      for (NodeId n : nodes_) {
        NodeLowering& lowering = *lowerings_.at(n);
        const Node& node = graph_.nodes[n];
        if (fusion_of(graph_, node) == Fusion::kRow) {
          op_of(node).kernel(lowering);
        } else if (is_row_value(node)) {
          Index index = row_index_;
          index.push_back(Expr(0));
          for (ValueId result : node.results) set_row_value(result, element(result, index));
          continue;
        }
        for (ValueId result : node.results) {
          if (row_values_.count(result) != 0) continue;
          bool read_again = false;
          for (NodeId consumer : uses_.consumers[result])
            read_again |=
                lowerings_.count(consumer) != 0 && fusion_of(graph_, graph_.nodes[consumer]) == Fusion::kRow;
          if (read_again && (is_stored(result) || columns() <= kLongestLocalRow))
            store_row(result);
          else if (is_stored(result))
            pending.push_back(result);
        }
      }
      if (pending.empty()) return;
      memo_.emplace_back();
      builder_.loop(0, columns(), LoopKind::kVector, [&](Expr column) {
        Index index = row_index_;
        index.push_back(column);
        store_all(pending, index);
      });
      memo_.pop_back();
    });
  }

  // One value a row: an element-wise op on values with a last axis of 1, in a space where it is longer.
  bool is_row_value(const Node& node) const {
    const Shape& shape = graph_.type(node.results[0]).shape;
    return columns() != 1 && !shape.empty() && shape.back() == Dim(1);
  }

  // Computes a row now, into its buffer or a local array, since later passes over the row need it.
  void store_row(ValueId value) {
    // Threads keep what they write; on a CPU it is still near.
    const bool is_written = is_stored(value);
    const bool is_local = !is_written || (dialect_.is_simt && columns() <= kLongestLocalRow);
    DType dtype = graph_.type(value).dtype;
    const Buffer target = is_written ? buffer(value, true) : Buffer();
    const Buffer row = is_local ? builder_.array("row", dtype, columns()) : target;
    memo_.emplace_back();
    builder_.loop(0, columns(), LoopKind::kVector, [&](Expr column) {
      Index index = row_index_;
      index.push_back(column);
      const Expr computed = element(value, index);
      if (is_local) builder_.store(row, column, computed);
      if (is_written) builder_.store(target, address_of(value, index), computed);
    });
    memo_.pop_back();
    stored_[value] = {row, is_local};
  }

  void lower_columns() {
    const Node& root = graph_.nodes[nodes_.back()];
    std::vector<int64_t> shape = numbers(graph_.type(root.operands[0]).shape);
    int64_t kept = kumi::element_count(graph_.type(root.results[0]).shape).number();
    // The border between summed and kept axes: the trailing axes that make up the result.
    int border = static_cast<int>(shape.size());
    for (int64_t count = 1; border > 0 && count < kept; --border) count *= shape[border - 1];
    make_column_space(shape, border);
    int merged_border = space_->merged_axis(border);
    int64_t rows = 1;
    for (int i = 0; i < merged_border; ++i) rows *= space_->merged()[i];
    NodeLowering& lowering = *lowerings_.at(nodes_.back());
    op_of(root).kernel(lowering);
    auto finish = lowering.column_finish ? lowering.column_finish : [](Expr e) { return e; };
    Buffer out = buffer(root.results[0], true);
    DType dtype = graph_.type(root.results[0]).dtype == DType::F64 ? DType::F64 : DType::F32;
    // What is added up at a row, of which these are the indices, and a column.
    auto element_at = [&](Index index, Expr column) {
      memo_.emplace_back();
      // Nothing is left to index where everything is summed.
      if (merged_border < space_->merged_rank())
        for (Expr& e : space_->unflatten(column, merged_border, space_->merged_rank())) index.push_back(e);
      Expr value = element(root.operands[0], index);
      memo_.pop_back();
      return lowering.column_element ? lowering.column_element(value) : value;
    };
    if (dialect_.is_simt) {
      reduce_columns_on_grid(
          builder_, {Reduction::kSum, rows, kept, dtype, work()}, out,
          [&](Expr row, Expr column) { return element_at(leading_index(row, merged_border), column); },
          finish);
      return;
    }
    bool whole_blocks = kept % kColumnBlock == 0;
    builder_.parallel((kept + kColumnBlock - 1) / kColumnBlock, work(), [&](Expr block) {
      Buffer sums = builder_.array("sums", dtype, kColumnBlock);
      Expr base = builder_.let("base", block * Expr(kColumnBlock));
      Expr width = whole_blocks ? Expr(kColumnBlock)
                                : builder_.let("width", minimum(Expr(kColumnBlock), Expr(kept) - base));
      auto each_column = [&](const std::function<void(Expr)>& body) {
        builder_.loop(0, width, LoopKind::kVector, body);
      };
      auto clear = [&](const Buffer& target) {
        each_column([&](Expr j) { builder_.store(target, j, kumi::constant(dtype, 0)); });
      };
      auto add_rows = [&](const Buffer& target, Expr begin, Expr end) {
        builder_.loop(begin, end, LoopKind::kSerial, [&](Expr row) {
          const Index leading = leading_index(row, merged_border);
          each_column([&](Expr j) { builder_.store(target, j, target[j] + element_at(leading, base + j)); });
        });
      };
      clear(sums);
      if (rows <= kRowBlock) {
        add_rows(sums, 0, rows);
      } else {
        // In two levels, so that the rounding error grows with the root of what it would.
        Buffer part = builder_.array("part", dtype, kColumnBlock);
        builder_.loop(0, (rows + kRowBlock - 1) / kRowBlock, LoopKind::kSerial, [&](Expr rows_block) {
          clear(part);
          Expr first = builder_.let("first_row", rows_block * Expr(kRowBlock));
          Expr end = first + Expr(kRowBlock);
          add_rows(part, first,
                   rows % kRowBlock == 0 ? end : builder_.let("end_row", minimum(end, Expr(rows))));
          each_column([&](Expr j) { builder_.store(sums, j, sums[j] + part[j]); });
        });
      }
      each_column([&](Expr j) { builder_.store(out, base + j, finish(sums[j])); });
    });
  }

  // The space of a column kernel covers the summed operand; its result is addressed by hand.
  void make_column_space(const std::vector<int64_t>& shape, int border) {
    std::vector<StridedShape> operands;
    for (NodeId n : nodes_)
      for (ValueId operand : graph_.nodes[n].operands)
        if (operand != kNone) operands.push_back(strided_shape(graph_.values[operand]));
    space_ = std::make_unique<IterationSpace>(shape, operands, std::vector<int>{border}, merge_);
  }

  const Graph& graph_;
  const Uses& uses_;
  const std::vector<NodeId>& nodes_;
  const Dialect& dialect_;
  KernelBuilder builder_;
  bool merge_ = true;
  std::unique_ptr<IterationSpace> space_;
  std::map<NodeId, std::unique_ptr<NodeLowering>> lowerings_;
  std::map<ValueId, NodeId> inside_;  // values computed by the group, and their node
  std::vector<Buffer> buffers_;
  std::vector<ValueId> buffer_values_;
  // Elements already computed, by value and index; one level an open loop.
  std::vector<std::map<std::pair<ValueId, std::vector<const ExprNode*>>, Expr>> memo_;
  std::vector<Index> kept_alive_;
  Index row_index_;                      // of the current row, in merged axes
  std::map<ValueId, Expr> row_values_;   // one value a row, already computed
  std::map<ValueId, StoredRow> stored_;  // rows already computed into memory
  bool elsewhere_ = false;               // an element of any row is being computed
};

bool NodeLowering::is_simt() const {
  return group_.is_simt();
}
Expr NodeLowering::read(size_t operand, const Index& index) {
  return group_.element_elsewhere(node().operands[operand], index);
}
int64_t NodeLowering::columns() const {
  return group_.columns();
}
ColumnFunction NodeLowering::row(size_t operand) {
  return group_.row_function(node().operands[operand]);
}
Expr NodeLowering::row_value(size_t operand) {
  return group_.row_value(node().operands[operand]);
}
Expr NodeLowering::reduce_row(Reduction reduction, const ColumnFunction& element) {
  return group_.reduce_row(reduction, element);
}
Expr NodeLowering::let(const std::string& wish, Expr value) {
  return group_.builder().let(wish, std::move(value));
}
void NodeLowering::row_result(size_t result, ColumnFunction element) {
  row_functions[result] = std::move(element);
}
void NodeLowering::row_value_result(size_t result, Expr value) {
  group_.set_row_value(node().results[result], std::move(value));
}
KernelBuilder& NodeLowering::builder() {
  return group_.builder();
}
Buffer NodeLowering::operand_buffer(size_t operand) {
  return group_.buffer(node().operands[operand], false);
}
Buffer NodeLowering::result_buffer(size_t result) {
  return group_.buffer(node().results[result], true);
}

}  // namespace

LoweredGroup lower_group(const Graph& graph, const Uses& uses, const std::vector<NodeId>& nodes,
                         const Dialect& dialect) {
  return GroupLowering(graph, uses, nodes, dialect).lower();
}

}  // namespace kumi
