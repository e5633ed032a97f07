#include "graph/passes/merge.h"

#include <algorithm>
#include <map>

#include "graph/op.h"
#include "graph/rebuild.h"

namespace kumi {
namespace {

class ProjectionMerger : private Rebuild {
 public:
  explicit ProjectionMerger(const Graph& graph) : Rebuild(graph) {}

  Graph run() {
    find_projections();
    for (size_t n = 0; n < old_.nodes.size(); ++n) {
      const Node& node = old_.nodes[n];
      auto found = group_of_.find(static_cast<NodeId>(n));
      if (found == group_of_.end()) {
        const bool is_there = node.op == "read" && new_id_[node.results[0]] != kNone;  // a merged weight's
        if (!is_there) copy(node);
      } else if (found->second->front() == static_cast<NodeId>(n)) {
        build(*found->second);
      }
    }
    for (const Output& output : old_.outputs) new_.outputs.push_back({output.name, new_id_[output.value]});
    return std::move(new_);
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
    return old_.producer(weight).op == "read" && old_.type(weight).rank() == 2 &&
           uses_.consumers[weight].size() == 1 && !uses_.is_output[weight] &&
           !uses_.is_output[node.results[0]];
  }

  void find_projections() {
    std::map<std::pair<ValueId, DType>, Group> by_input;
    for (size_t n = 0; n < old_.nodes.size(); ++n) {
      const Node& node = old_.nodes[n];
      if (is_projection(node))
        by_input[{node.operands[0], old_.type(node.operands[1]).dtype}].push_back(static_cast<NodeId>(n));
    }
    for (auto& [input, group] : by_input)
      if (group.size() > 1) groups_.push_back(std::move(group));
    for (const Group& group : groups_)
      for (NodeId n : group) group_of_[n] = &group;
  }

  void build(const Group& group) {
    const Node& first = old_.nodes[group[0]];
    std::vector<ValueId> weights;
    Shape sizes;
    for (NodeId n : group) {
      const Node& read = old_.producer(old_.nodes[n].operands[1]);
      if (new_id_[read.results[0]] == kNone) copy(read);  // one that the old graph reads later
      weights.push_back(new_id_[read.results[0]]);
      sizes.push_back(old_.type(read.results[0]).shape[0]);
    }
    builder_.scope = common_scope(group);
    builder_.location = first.location;
    const ValueId weight = builder_.call("concat", weights, {{"axis", Dim(0)}}, "merged_weight");
    const ValueId product =
        builder_.call("matmul", {new_id_[first.operands[0]], weight}, first.attributes, "merged");
    std::vector<ValueId> parts = builder_.build("split", {product}, {{"axis", Dim(-1)}, {"sizes", sizes}},
                                                old_.values[first.results[0]].name);
    for (size_t i = 0; i < group.size(); ++i) new_id_[old_.nodes[group[i]].results[0]] = parts[i];
  }

  // model.layers.7 for model.layers.7.self_attn and model.layers.7.mlp.
  std::string common_scope(const Group& group) const {
    std::string scope = old_.nodes[group[0]].scope;
    auto holds = [&](NodeId n) { return (old_.nodes[n].scope + ".").starts_with(scope + "."); };
    while (!scope.empty() && !std::all_of(group.begin(), group.end(), holds))
      scope.resize(scope.find('.') == std::string::npos ? 0 : scope.rfind('.'));
    return scope;
  }

  std::vector<Group> groups_;
  std::map<NodeId, const Group*> group_of_;
};

}  // namespace

Module merge(Module module, const PlanOptions&) {
  for (Graph& graph : module.graphs) graph = ProjectionMerger(graph).run();
  return module;
}

}  // namespace kumi
