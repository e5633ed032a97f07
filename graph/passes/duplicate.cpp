#include "graph/passes/duplicate.h"

#include <algorithm>
#include <map>

#include "graph/op.h"
#include "graph/rewrite.h"
#include "graph/uses.h"

namespace kumi {
namespace {

// Element-wise nodes that one copy may take with it: casts, an activation, a product.
constexpr int kLongestChain = 4;

class Duplication {
 public:
  explicit Duplication(const Graph& graph)
      : graph_(graph), uses_(graph), builder_(result_), new_id_(graph.values.size(), kNone) {
    result_.name = graph.name;
    find_segments();
  }

  Graph run() {
    for (size_t n = 0; n < graph_.nodes.size(); ++n) copy(static_cast<NodeId>(n));
    for (const Output& output : graph_.outputs)
      result_.outputs.push_back({output.name, new_id_[output.value]});
    return remove_dead_nodes(result_);
  }

 private:
  // Nodes between two that are kernels of their own can share a kernel.
  void find_segments() {
    int segment = 0;
    for (const Node& node : graph_.nodes) {
      const OpDef& op = op_of(node);
      const bool is_light = op.is_view || op.moves_parts || op.is_state_access || node.op == "constant" ||
                            is_fusible(graph_, node);
      segments_.push_back(is_light ? segment : ++segment);
    }
  }

  void copy(NodeId n) {
    const Node& node = graph_.nodes[n];
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands)
      operands.push_back(operand == kNone ? kNone : operand_for(operand, n));
    std::vector<ValueId> results = builder_.copy(graph_, node, operands);
    for (size_t i = 0; i < results.size(); ++i) new_id_[node.results[i]] = results[i];
    finish(node, n);
  }

  // What building a node does not set.
  void finish(const Node& node, NodeId user) {
    Node& added = builder_.mutable_graph().nodes.back();
    added.recomputed = node.recomputed || graph_.nodes[user].recomputed;
    added.stream = node.stream;
  }

  ValueId operand_for(ValueId value, NodeId user) {
    if (!is_fusible(graph_, graph_.nodes[user]) || !is_worth_a_copy(value, user)) return new_id_[value];
    return duplicate(value, user);
  }

  bool is_element_wise(ValueId value) const {
    const Node& node = graph_.producer(value);
    return is_fusible(graph_, node) && fusion_of(graph_, node) == Fusion::kPointwise &&
           node.results.size() == 1 && node.op != "constant" && !node.operands.empty();
  }

  // A cast to a wider type: its operand is smaller to keep and to load.
  bool is_widening(ValueId value) const {
    const Node& node = graph_.producer(value);
    return node.op == "cast" &&
           size_of(graph_.type(node.operands[0]).dtype) < size_of(graph_.type(value).dtype);
  }

  bool is_worth_a_copy(ValueId value, NodeId user) const {
    if (!is_element_wise(value) || uses_.is_output[value]) return false;
    const NodeId producer = graph_.values[value].producer;
    if (segments_[producer] == segments_[user] && !is_widening(value)) return false;
    // Stored anyway, for a kernel of its own that comes later.
    for (NodeId consumer : uses_.consumers[value])
      if (!is_fusible(graph_, graph_.nodes[consumer]) && segments_[consumer] >= segments_[user]) return false;
    if (uses_.consumers[value].size() == 1 && segments_[producer] == segments_[user]) return false;
    int budget = kLongestChain;
    return is_there(value, user, &budget);
  }

  // Can the value be computed at the user from what is in memory then, without keeping more?
  bool is_there(ValueId value, NodeId user, int* budget) const {
    if ((*budget)-- <= 0) return false;
    for (ValueId operand : graph_.producer(value).operands) {
      if (operand == kNone || is_kept(operand, value, user)) continue;
      if (!is_element_wise(operand) || !is_there(operand, user, budget)) return false;
    }
    return true;
  }

  bool is_kept(ValueId operand, ValueId value, NodeId user) const {
    const Node& producer = graph_.producer(operand);
    if (producer.op == "read" || producer.op == "input" || producer.op == "constant") return true;
    if (is_element_wise(operand)) return false;  // mostly in no memory: what it is computed from is
    const bool is_one_a_row = byte_count(graph_.type(operand)) * 8 <= byte_count(graph_.type(value));
    if (is_one_a_row ||
        (is_widening(value) && value == graph_.nodes[graph_.values[value].producer].results[0]))
      return true;
    return is_used_from(operand, value, user);
  }

  // Also by way of views, and of other values that are there then.
  bool is_used_from(ValueId operand, ValueId but, NodeId user) const {
    for (NodeId consumer : uses_.consumers[operand]) {
      const Node& node = graph_.nodes[consumer];
      if (consumer >= user) return true;
      const OpDef& op = op_of(node);
      if (op.is_view || (is_element_wise(node.results.empty() ? operand : node.results[0]) &&
                         node.results[0] != but && is_widening(node.results[0])))
        for (ValueId result : node.results)
          if (is_used_from(result, but, user)) return true;
    }
    return false;
  }

  // One copy for the users of a segment; a widening cast for each user, which may be in different kernels.
  ValueId duplicate(ValueId value, NodeId user) {
    const int place = is_widening(value) ? -static_cast<int>(user) - 1 : segments_[user];
    const bool recomputed = graph_.nodes[user].recomputed;
    auto [entry, is_new] = copies_.try_emplace({value, place, recomputed}, kNone);
    if (!is_new) return entry->second;
    const Node& node = graph_.producer(value);
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands) {
      const bool again = operand != kNone && is_element_wise(operand) && !is_kept(operand, value, user);
      operands.push_back(operand == kNone ? kNone : again ? duplicate(operand, user) : new_id_[operand]);
    }
    const ValueId copy = builder_.copy(graph_, node, operands)[0];
    finish(node, user);
    copies_[{value, place, recomputed}] = copy;
    return copy;
  }

  const Graph& graph_;
  const Uses uses_;
  Graph result_;
  GraphBuilder builder_;
  std::vector<ValueId> new_id_;  // by old value
  std::vector<int> segments_;    // by node
  std::map<std::tuple<ValueId, int, bool>, ValueId> copies_;
};

}  // namespace

Graph duplicate_cheap_nodes(const Graph& graph) {
  return Duplication(graph).run();
}

}  // namespace kumi
