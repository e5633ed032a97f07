#include "graph/passes/merge.h"

#include <algorithm>
#include <map>

#include "graph/op.h"
#include "graph/rewrite.h"
#include "graph/uses.h"

namespace kumi {
namespace {

class ProjectionMerger {
 public:
  explicit ProjectionMerger(const Graph& graph)
      : graph_(graph), uses_(graph), builder_(result_), new_id_(graph.values.size(), kNone) {
    result_.name = graph.name;
  }

  Graph run() {
    find_projections();
    for (size_t n = 0; n < graph_.nodes.size(); ++n) {
      const Node& node = graph_.nodes[n];
      auto found = group_of_.find(static_cast<NodeId>(n));
      if (found == group_of_.end()) {
        copy(node);
      } else if (found->second->front() == static_cast<NodeId>(n)) {
        build(*found->second);
      }
    }
    for (const Output& output : graph_.outputs)
      result_.outputs.push_back({output.name, new_id_[output.value]});
    return result_;
  }

 private:
  using Group = std::vector<NodeId>;  // products of one input, in order

  // x times the transpose of a weight that nothing else uses.
  bool is_projection(const Node& node) const {
    if (node.op != "matmul" || bool_attribute(node.attributes, "transpose_a") ||
        !bool_attribute(node.attributes, "transpose_b"))
      return false;
    if (node.operands.size() > 2 && node.operands[2] != kNone) return false;
    const ValueId weight = node.operands[1];
    return graph_.producer(weight).op == "read" && graph_.type(weight).rank() == 2 &&
           uses_.consumers[weight].size() == 1 && !uses_.is_output[weight] &&
           !uses_.is_output[node.results[0]];
  }

  void find_projections() {
    std::map<std::pair<ValueId, DType>, Group> by_input;
    for (size_t n = 0; n < graph_.nodes.size(); ++n) {
      const Node& node = graph_.nodes[n];
      if (is_projection(node))
        by_input[{node.operands[0], graph_.type(node.operands[1]).dtype}].push_back(static_cast<NodeId>(n));
    }
    for (auto& [input, group] : by_input)
      if (group.size() > 1) groups_.push_back(std::move(group));
    for (const Group& group : groups_)
      for (NodeId n : group) group_of_[n] = &group;
  }

  void copy(const Node& node) {
    if (node.op == "read" && new_id_[node.results[0]] != kNone) return;  // a merged weight's
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands) operands.push_back(operand == kNone ? kNone : new_id_[operand]);
    std::vector<ValueId> results = builder_.copy(graph_, node, operands);
    for (size_t i = 0; i < results.size(); ++i) new_id_[node.results[i]] = results[i];
  }

  void build(const Group& group) {
    const Node& first = graph_.nodes[group[0]];
    std::vector<ValueId> weights;
    Shape sizes;
    for (NodeId n : group) {
      const Node& read = graph_.producer(graph_.nodes[n].operands[1]);
      if (new_id_[read.results[0]] == kNone) copy(read);  // one that the old graph reads later
      weights.push_back(new_id_[read.results[0]]);
      sizes.push_back(graph_.type(read.results[0]).shape[0]);
    }
    builder_.scope = common_scope(group);
    builder_.location = first.location;
    const ValueId weight = builder_.call("concat", weights, {{"axis", Dim(0)}}, "merged_weight");
    const ValueId product =
        builder_.call("matmul", {new_id_[first.operands[0]], weight}, first.attributes, "merged");
    std::vector<ValueId> parts = builder_.build("split", {product}, {{"axis", Dim(-1)}, {"sizes", sizes}},
                                                graph_.values[first.results[0]].name);
    for (size_t i = 0; i < group.size(); ++i) new_id_[graph_.nodes[group[i]].results[0]] = parts[i];
  }

  // model.layers.7 for model.layers.7.self_attn and model.layers.7.mlp.
  std::string common_scope(const Group& group) const {
    std::string scope = graph_.nodes[group[0]].scope;
    auto holds = [&](NodeId n) { return (graph_.nodes[n].scope + ".").starts_with(scope + "."); };
    while (!scope.empty() && !std::all_of(group.begin(), group.end(), holds))
      scope.resize(scope.find('.') == std::string::npos ? 0 : scope.rfind('.'));
    return scope;
  }

  const Graph& graph_;
  const Uses uses_;
  Graph result_;
  GraphBuilder builder_;
  std::vector<ValueId> new_id_;  // by old value
  std::vector<Group> groups_;
  std::map<NodeId, const Group*> group_of_;
};

}  // namespace

Module merge(Module module, const PlanOptions&) {
  for (Graph& graph : module.graphs) graph = ProjectionMerger(graph).run();
  return module;
}

}  // namespace kumi
