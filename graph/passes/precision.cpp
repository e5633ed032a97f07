#include "graph/passes/precision.h"

#include <map>

#include "graph/op.h"
#include "graph/rebuild.h"
#include "graph/rewrite.h"

namespace kumi {
namespace {

class Bf16Products : private Rebuild {
 public:
  explicit Bf16Products(const Graph& graph) : Rebuild(graph) {}

  Graph run() {
    for (const Node& node : old_.nodes) rebuild(node);
    for (const Output& output : old_.outputs)
      new_.outputs.push_back({output.name, as(output.value, old_.type(output.value).dtype)});
    return remove_dead_nodes(merge_equal_nodes(new_));
  }

 private:
  void rebuild(const Node& node) {
    const OpDef& op = op_of(node);
    std::vector<ValueId> operands;
    Attributes attributes = node.attributes;
    if (op.precision == OpPrecision::kLow && leaves_graph(node))
      set_attribute(&attributes, "f32_result", true);
    // Casts that are written in the model are computed from what is there.
    const bool is_cast = node.op == "cast";
    for (size_t i = 0; i < node.operands.size(); ++i) {
      const ValueId operand = node.operands[i];
      if (operand == kNone)
        operands.push_back(kNone);
      else if (old_.type(operand).dtype != DType::F32 || is_cast)
        operands.push_back(new_id_[operand]);
      else
        operands.push_back(as(operand, type_of_operand(op, node, attributes, i)));
    }
    stand_for(node);
    const std::string name = node.results.empty() ? "" : old_.values[node.results[0]].name;
    record(node, builder_.build(node.op, operands, std::move(attributes), name));
  }

  DType type_of_operand(const OpDef& op, const Node& node, const Attributes& attributes, size_t i) const {
    const ValueId operand = node.operands[i];
    if (op.is_state_access || op.precision == OpPrecision::kFull) return old_.type(operand).dtype;
    if (op.precision == OpPrecision::kLow) {
      const bool is_of_the_result = op.in_place_operand == i && gives_sums(attributes);
      return is_of_the_result || is_statistic(operand) ? DType::F32 : DType::BF16;
    }
    // What the op takes as it comes; several of one kind must agree.
    DType type = builder_.graph().type(new_id_[operand]).dtype;
    if (op.moves_parts)
      for (ValueId other : node.operands)
        if (builder_.graph().type(new_id_[other]).dtype != type)
          type = feeds_products_only(node) ? DType::BF16 : DType::F32;
    return type;
  }

  static bool gives_sums(const Attributes& attributes) {
    const Attribute* f32_result = find_attribute(attributes, "f32_result");
    return f32_result != nullptr && std::get<bool>(*f32_result);
  }

  // Everything that looks at the results, through ops that take what comes, takes bf16.
  bool feeds_products_only(const Node& node) const {
    for (ValueId result : node.results) {
      if (uses_.is_output[result]) return false;
      for (NodeId n : uses_.consumers[result]) {
        const OpPrecision precision = op_of(old_.nodes[n]).precision;
        if (precision == OpPrecision::kFull ||
            (precision == OpPrecision::kAny && !feeds_products_only(old_.nodes[n])))
          return false;
      }
    }
    return true;
  }

  // The log-sum-exp, which attention gives and its gradient takes in f32.
  bool is_statistic(ValueId operand) const {
    const Value& value = old_.values[operand];
    return value.result_index > 0 && op_of(old_.producer(operand)).precision == OpPrecision::kLow;
  }

  // Only outputs and views of them look at the result.
  bool leaves_graph(const Node& node) const {
    for (ValueId result : node.results)
      if (!uses_.is_output[result] && uses_.consumers[result].empty()) return false;
    for (ValueId result : node.results)
      for (NodeId n : uses_.consumers[result]) {
        if (!op_of(old_.nodes[n]).computes_nothing() || !leaves_graph(old_.nodes[n])) return false;
      }
    return true;
  }

  // The value in a type, cast once.
  ValueId as(ValueId old, DType dtype) {
    const ValueId value = new_id_[old];
    if (builder_.graph().type(value).dtype == dtype) return value;
    if (const auto found = casts_.find({value, dtype}); found != casts_.end()) return found->second;
    const Node& producer = old_.producer(old);
    const bool is_view = op_of(producer).is_view;
    // A view of what is cast, so that all views of a value share its cast.
    const ValueId operand = is_view ? as(producer.operands[0], dtype) : value;
    stand_for(producer);
    const std::string name = concat(old_.values[old].name, ".", to_string(dtype));
    const ValueId cast = is_view ? builder_.call(producer.op, {operand}, producer.attributes, name)
                                 : builder_.call("cast", {operand}, {{"dtype", dtype}}, name);
    casts_[{value, dtype}] = cast;
    return cast;
  }

  std::map<std::pair<ValueId, DType>, ValueId> casts_;  // by new value
};

}  // namespace

Module precision(Module module, const PlanOptions& options) {
  if (options.precision == Precision::kF32) return module;
  for (Graph& graph : module.graphs) graph = Bf16Products(graph).run();
  return module;
}

}  // namespace kumi
