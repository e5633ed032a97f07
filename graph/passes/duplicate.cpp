#include "graph/passes/duplicate.h"

#include <algorithm>
#include <map>

#include "graph/op.h"
#include "graph/rebuild.h"
#include "graph/rewrite.h"

namespace kumi {
namespace {

// Element-wise nodes that one copy may take with it: casts, an activation, a product.
constexpr int kLongestChain = 4;

class Duplication : private Rebuild {
 public:
  explicit Duplication(const Graph& graph) : Rebuild(graph) {
    int segment = 0;
    for (const Node& node : graph.nodes) segments_.push_back(stands_alone(graph, node) ? ++segment : segment);
  }

  Graph run() {
    for (size_t n = 0; n < old_.nodes.size(); ++n) rebuild(static_cast<NodeId>(n));
    for (const Output& output : old_.outputs) new_.outputs.push_back({output.name, new_id_[output.value]});
    return remove_dead_nodes(new_);
  }

 private:
  void rebuild(NodeId n) {
    const Node& node = old_.nodes[n];
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands)
      operands.push_back(operand == kNone ? kNone : operand_for(operand, n));
    record(node, builder_.copy(old_, node, operands));
  }

  ValueId operand_for(ValueId value, NodeId user) {
    if (!is_fusible(old_, old_.nodes[user]) || !is_worth_a_copy(value, user)) return new_id_[value];
    return duplicate(value, user);
  }

  bool is_element_wise(ValueId value) const {
    const Node& node = old_.producer(value);
    return is_fusible(old_, node) && fusion_of(old_, node) == Fusion::kPointwise &&
           node.results.size() == 1 && node.op != "constant" && !node.operands.empty();
  }

  // A cast to a wider type: its operand is smaller to keep and to load.
  bool is_widening(ValueId value) const {
    const Node& node = old_.producer(value);
    return node.op == "cast" && size_of(old_.type(node.operands[0]).dtype) < size_of(old_.type(value).dtype);
  }

  bool is_worth_a_copy(ValueId value, NodeId user) const {
    if (!is_element_wise(value) || uses_.is_output[value]) return false;
    const NodeId producer = old_.values[value].producer;
    if (segments_[producer] == segments_[user] && !is_widening(value)) return false;
    // Stored anyway, for a kernel of its own that comes later.
    for (NodeId consumer : uses_.consumers[value])
      if (!is_fusible(old_, old_.nodes[consumer]) && segments_[consumer] >= segments_[user]) return false;
    if (uses_.consumers[value].size() == 1 && segments_[producer] == segments_[user]) return false;
    int budget = kLongestChain;
    return is_there(value, user, &budget);
  }

  // Can the value be computed at the user from what is in memory then, without keeping more?
  bool is_there(ValueId value, NodeId user, int* budget) const {
    if ((*budget)-- <= 0) return false;
    for (ValueId operand : old_.producer(value).operands) {
      if (operand == kNone || is_kept(operand, value, user)) continue;
      if (!is_element_wise(operand) || !is_there(operand, user, budget)) return false;
    }
    return true;
  }

  bool is_kept(ValueId operand, ValueId value, NodeId user) const {
    const Node& producer = old_.producer(operand);
    if (producer.op == "read" || producer.op == "input" || producer.op == "constant") return true;
    if (is_element_wise(operand)) return false;  // mostly in no memory: what it is computed from is
    const bool is_one_a_row = byte_count(old_.type(operand)) * 8 <= byte_count(old_.type(value));
    return is_one_a_row || is_widening(value) || is_used_from(operand, value, user);
  }

  // Also by way of views, and of other values that are there then.
  bool is_used_from(ValueId operand, ValueId but, NodeId user) const {
    for (NodeId consumer : uses_.consumers[operand]) {
      if (consumer >= user) return true;
      const Node& node = old_.nodes[consumer];
      for (ValueId result : node.results)
        if ((op_of(node).is_view || (is_widening(result) && result != but)) &&
            is_used_from(result, but, user))
          return true;
    }
    return false;
  }

  // One copy for the users of a segment; a widening cast for each user, which may be in different kernels.
  ValueId duplicate(ValueId value, NodeId user) {
    const int place = is_widening(value) ? -static_cast<int>(user) - 1 : segments_[user];
    const bool recomputed = old_.nodes[user].recomputed;
    auto [entry, is_new] = copies_.try_emplace({value, place, recomputed}, kNone);
    if (!is_new) return entry->second;
    const Node& node = old_.producer(value);
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands) {
      const bool again = operand != kNone && is_element_wise(operand) && !is_kept(operand, value, user);
      operands.push_back(operand == kNone ? kNone : again ? duplicate(operand, user) : new_id_[operand]);
    }
    entry->second = builder_.copy(old_, node, operands)[0];
    new_.nodes.back().recomputed |= recomputed;
    return entry->second;
  }

  // By node: counts those before it that stand alone. Nodes of one segment can share a kernel.
  std::vector<int> segments_;
  std::map<std::tuple<ValueId, int, bool>, ValueId> copies_;
};

}  // namespace

Graph duplicate_cheap_nodes(const Graph& graph) {
  return Duplication(graph).run();
}

}  // namespace kumi
