// Greedy fusion in topological order: each node joins the group of one of its producers, or of a node that
// reads the same values, if the result is one kernel shape that codegen knows (codegen/group_lowering.h)
// and no cycle arises between groups; groups that it could join both become one. Else it begins a group
// of its own. Afterwards the nodes of a group stand together.
#include "graph/passes/fuse.h"

#include <algorithm>
#include <queue>

#include "graph/op.h"
#include "graph/passes/duplicate.h"
#include "graph/reorder.h"
#include "graph/uses.h"

namespace kumi {
namespace {

// Larger groups gain little and make kernels that no other layer shares.
constexpr size_t kLargestGroup = 24;

struct Group {
  Fusion kind = Fusion::kPointwise;  // kPointwise (flat), kRow or kColumn
  Shape domain;                      // the shape over which the kernel runs
  std::vector<NodeId> members;
  NodeId column_target = kNone;  // the column sum that these nodes feed and nothing else
};

class GraphFuser {
 public:
  explicit GraphFuser(Graph* graph) : graph_(*graph), uses_(*graph), group_of_(graph->nodes.size(), kNone) {
    find_column_targets();
  }

  void run() {
    for (size_t n = 0; n < graph_.nodes.size(); ++n) {
      NodeId node = static_cast<NodeId>(n);
      if (!may_fuse(node)) continue;
      int32_t group = kNone;
      for (const std::vector<int32_t>& candidates : {producer_groups(node), sibling_groups(node)})
        for (int32_t candidate : candidates)
          if (can_join(groups_[candidate], node) && !makes_cycle(candidate, node)) {
            if (group == kNone)
              group = candidate;
            else if (can_unite(group, candidate, node))
              unite(group, candidate);
          }
      if (group == kNone) {
        group = static_cast<int32_t>(groups_.size());
        groups_.push_back({Fusion::kPointwise, domain_of(node), {}, column_target_[n]});
      }
      Fusion fusion = fusion_of(graph_, graph_.nodes[n]);
      if (fusion == Fusion::kRow || fusion == Fusion::kColumn) groups_[group].kind = fusion;
      groups_[group].members.push_back(node);
      group_of_[n] = group;
    }
    place_groups_together();
  }

 private:
  bool may_fuse(NodeId n) const {
    const Node& node = graph_.nodes[n];
    if (!is_fusible(graph_, node)) return false;
    return node.op != "constant" || !is_inlined_constant(graph_, uses_, node.results[0]);
  }

  Shape domain_of(NodeId n) const {
    const Node& node = graph_.nodes[n];
    Fusion fusion = fusion_of(graph_, node);
    bool over_operand = fusion == Fusion::kRow || fusion == Fusion::kColumn;
    return graph_.type(over_operand ? node.operands[0] : node.results[0]).shape;
  }

  // Chains of element-wise nodes whose only purpose is a column sum: they go into its kernel.
  void find_column_targets() {
    column_target_.assign(graph_.nodes.size(), kNone);
    for (size_t n = graph_.nodes.size(); n-- > 0;) {
      const Node& node = graph_.nodes[n];
      if (node.results.size() != 1 || !may_fuse(static_cast<NodeId>(n))) continue;
      Fusion fusion = fusion_of(graph_, node);
      if (fusion != Fusion::kPointwise && fusion != Fusion::kIndexing) continue;
      ValueId result = node.results[0];
      if (uses_.is_output[result]) continue;
      NodeId target = kNone;
      bool single = !uses_.consumers[result].empty();
      for (NodeId consumer : uses_.consumers[result]) {
        bool is_sum = is_fusible(graph_, graph_.nodes[consumer]) &&
                      fusion_of(graph_, graph_.nodes[consumer]) == Fusion::kColumn;
        NodeId next = is_sum ? consumer : column_target_[consumer];
        single = single && next != kNone && (target == kNone || target == next) &&
                 may_share_kernel(static_cast<NodeId>(n), consumer) &&
                 domain_of(consumer) == graph_.type(result).shape;
        target = next;
      }
      if (single) column_target_[n] = target;
    }
  }

  // What is computed again is not mixed with what is not. In a kernel of the forward part it would be
  // computed, and kept, from there on; and all other kernels stay what they are without recomputation,
  // to the bit.
  bool may_share_kernel(NodeId a, NodeId b) const {
    return graph_.nodes[a].recomputed == graph_.nodes[b].recomputed;
  }

  std::vector<int32_t> producer_groups(NodeId n) const {
    std::vector<int32_t> groups;
    for (ValueId operand : graph_.nodes[n].operands) {
      if (operand == kNone || !may_share_kernel(n, graph_.values[operand].producer)) continue;
      int32_t group = group_of_[graph_.values[operand].producer];
      if (group != kNone && std::find(groups.begin(), groups.end(), group) == groups.end())
        groups.push_back(group);
    }
    std::sort(groups.rbegin(), groups.rend());  // the latest first: it has the shortest way to go
    return groups;
  }

  // Groups that read what the node reads, with nothing but light nodes in between: one kernel then loads
  // it once. The latest first.
  std::vector<int32_t> sibling_groups(NodeId n) const {
    std::vector<int32_t> groups;
    const Shape domain = domain_of(n);
    for (ValueId operand : graph_.nodes[n].operands) {
      if (operand == kNone || graph_.type(operand).shape != domain) continue;
      for (NodeId consumer : uses_.consumers[operand]) {
        const int32_t group = consumer < n ? group_of_[consumer] : kNone;
        if (group == kNone || !may_share_kernel(n, consumer) || !is_near(groups_[group].members.back(), n))
          continue;
        if (std::find(groups.begin(), groups.end(), group) == groups.end()) groups.push_back(group);
      }
    }
    std::sort(groups.rbegin(), groups.rend());
    return groups;
  }

  bool is_near(NodeId a, NodeId b) const {
    for (NodeId n = a + 1; n < b; ++n)
      if (stands_alone(graph_, graph_.nodes[n])) return false;
    return true;
  }

  // Can two groups be one, together with a node that could join either?
  bool can_unite(int32_t a, int32_t b, NodeId n) const {
    const Group &one = groups_[a], &other = groups_[b];
    if (a == b || one.kind == Fusion::kColumn || other.kind == Fusion::kColumn ||
        !(one.domain == other.domain) || one.column_target != other.column_target ||
        one.members.size() + other.members.size() >= kLargestGroup ||
        !may_share_kernel(one.members[0], other.members[0]))
      return false;
    // In a row kernel an indexing op finds what it reads in memory only.
    const bool is_row = one.kind == Fusion::kRow || other.kind == Fusion::kRow;
    if (is_row && (reads_elsewhere(one, {a, b}) || reads_elsewhere(other, {a, b}))) return false;
    for (NodeId member : other.members)
      if (!operands_fit(one, graph_.nodes[member])) return false;
    for (NodeId member : one.members)
      if (!operands_fit(other, graph_.nodes[member])) return false;
    const Node& node = graph_.nodes[n];
    return operands_fit(one, node) && operands_fit(other, node) && !depends_on_itself({a, b}, {});
  }

  // Has an indexing op that takes elements of what one of the groups computes.
  bool reads_elsewhere(const Group& group, const std::vector<int32_t>& groups) const {
    for (NodeId member : group.members) {
      if (fusion_of(graph_, graph_.nodes[member]) != Fusion::kIndexing) continue;
      for (ValueId operand : graph_.nodes[member].operands)
        if (operand != kNone &&
            std::count(groups.begin(), groups.end(), group_of_[graph_.values[operand].producer]) != 0)
          return true;
    }
    return false;
  }

  void unite(int32_t into, int32_t from) {
    Group& group = groups_[into];
    for (NodeId member : groups_[from].members) {
      group_of_[member] = into;
      group.members.push_back(member);
    }
    std::sort(group.members.begin(), group.members.end());
    if (groups_[from].kind == Fusion::kRow) group.kind = Fusion::kRow;
    groups_[from].members.clear();
  }

  // One value for each row of the domain: its shape with a last axis of 1.
  static bool is_row_value_of(const Shape& shape, const Shape& domain) {
    if (shape.size() != domain.size() || shape.empty() || !(shape.back() == Dim(1)) ||
        domain.back() == Dim(1))
      return false;
    return std::equal(shape.begin(), shape.end() - 1, domain.begin());
  }

  bool can_join(const Group& group, NodeId n) const {
    const Node& node = graph_.nodes[n];
    Fusion fusion = fusion_of(graph_, node);
    if (group.kind == Fusion::kColumn || group.members.size() >= kLargestGroup) return false;
    if (fusion == Fusion::kColumn) return group.column_target == n && group.domain == domain_of(n);
    if (group.column_target != column_target_[n]) return false;
    switch (fusion) {
      case Fusion::kPointwise:
        if (domain_of(n) == group.domain) return operands_fit(group, node);
        return group.kind == Fusion::kRow && is_row_value_of(domain_of(n), group.domain) &&
               operands_fit(group, node);
      case Fusion::kIndexing:
        // It reads elements elsewhere, so all that it reads must be computable anywhere.
        return group.kind == Fusion::kPointwise && domain_of(n) == group.domain && operands_fit(group, node);
      case Fusion::kRow:
        return domain_of(n) == group.domain && operands_fit(group, node);
      default:
        return false;
    }
  }

  // What a node takes from its own group must have the domain's shape or be one value a row.
  bool operands_fit(const Group& group, const Node& node) const {
    int32_t id = static_cast<int32_t>(&group - groups_.data());
    for (ValueId operand : node.operands) {
      if (operand == kNone || group_of_[graph_.values[operand].producer] != id) continue;
      const Shape& shape = graph_.type(operand).shape;
      if (!(shape == group.domain) && !(group.kind == Fusion::kRow && is_row_value_of(shape, group.domain)))
        return false;
    }
    return true;
  }

  // Would the node depend on its own group by way of a node outside of it?
  bool makes_cycle(int32_t group, NodeId n) const { return depends_on_itself({group}, {n}); }

  // Would one kernel of these groups and nodes depend on itself by way of nodes outside of it?
  bool depends_on_itself(const std::vector<int32_t>& groups, const std::vector<NodeId>& nodes) const {
    auto is_inside = [&](int32_t group) {
      return std::find(groups.begin(), groups.end(), group) != groups.end();
    };
    NodeId earliest = static_cast<NodeId>(graph_.nodes.size());
    for (int32_t group : groups) earliest = std::min(earliest, groups_[group].members.front());
    std::vector<NodeId> open;
    std::vector<bool> seen(graph_.nodes.size(), false);
    auto visit_operands = [&](NodeId from, bool from_inside) {
      for (ValueId operand : graph_.nodes[from].operands) {
        if (operand == kNone) continue;
        NodeId producer = graph_.values[operand].producer;
        if (seen[producer] || (from_inside && is_inside(group_of_[producer]))) continue;
        seen[producer] = true;
        open.push_back(producer);
      }
    };
    for (NodeId n : nodes) visit_operands(n, true);
    // A group by itself never depends on itself, but what two depend on may lead from one to the other.
    if (groups.size() > 1)
      for (int32_t group : groups)
        for (NodeId member : groups_[group].members) visit_operands(member, true);
    while (!open.empty()) {
      NodeId at = open.back();
      open.pop_back();
      int32_t other = group_of_[at];
      if (is_inside(other)) return true;
      if (other == kNone) {
        if (at > earliest) visit_operands(at, false);
      } else if (groups_[other].members.back() > earliest) {
        for (NodeId member : groups_[other].members) visit_operands(member, false);
      }
    }
    return false;
  }

  // Topological order of groups and single nodes; among those that are ready, the one whose last
  // node came first in the old order.
  void place_groups_together() {
    size_t count = graph_.nodes.size();
    // Units: groups first, then one a node outside of groups.
    std::vector<int32_t> unit_of(count);
    std::vector<std::vector<NodeId>> units;
    for (const Group& group : groups_) units.push_back(group.members);  // united ones are empty
    for (size_t n = 0; n < count; ++n) {
      if (group_of_[n] == kNone) {
        unit_of[n] = static_cast<int32_t>(units.size());
        units.push_back({static_cast<NodeId>(n)});
      } else {
        unit_of[n] = group_of_[n];
      }
    }
    std::vector<std::vector<int32_t>> dependents(units.size());
    std::vector<int> waiting(units.size(), 0);
    for (size_t n = 0; n < count; ++n)
      for (ValueId operand : graph_.nodes[n].operands) {
        if (operand == kNone) continue;
        int32_t from = unit_of[graph_.values[operand].producer];
        if (from == unit_of[n]) continue;
        dependents[from].push_back(unit_of[n]);
        ++waiting[unit_of[n]];
      }
    auto later = [&](int32_t a, int32_t b) { return units[a].back() > units[b].back(); };
    std::priority_queue<int32_t, std::vector<int32_t>, decltype(later)> ready(later);
    for (size_t u = 0; u < units.size(); ++u)
      if (waiting[u] == 0 && !units[u].empty()) ready.push(static_cast<int32_t>(u));
    std::vector<NodeId> order;
    int32_t next_group = 0;
    while (!ready.empty()) {
      int32_t unit = ready.top();
      ready.pop();
      if (units[unit].size() > 1) {
        for (NodeId n : units[unit]) graph_.nodes[n].group = next_group;
        ++next_group;
      }
      order.insert(order.end(), units[unit].begin(), units[unit].end());
      for (int32_t dependent : dependents[unit])
        if (--waiting[dependent] == 0) ready.push(dependent);
    }
    if (order.size() != count)
      throw Error("fusion made a cycle between kernel groups in graph '" + graph_.name + "'");
    reorder(&graph_, order);
  }

  Graph& graph_;
  Uses uses_;
  std::vector<int32_t> group_of_;
  std::vector<Group> groups_;
  std::vector<NodeId> column_target_;
};

}  // namespace

Module fuse(Module module, const PlanOptions&) {
  for (Graph& graph : module.graphs) {
    graph = duplicate_cheap_nodes(graph);
    GraphFuser(&graph).run();
  }
  return module;
}

}  // namespace kumi
