#include "graph/passes/overlap.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "graph/op.h"
#include "graph/reorder.h"

namespace kumi {
namespace {

class Overlap {
 public:
  Overlap(const Graph& graph, const std::vector<NodeId>& order) : graph_(graph), late_(graph.values.size()) {
    for (NodeId n : order) {
      const int32_t group = graph.nodes[n].group;
      if (group == kNone || units_.empty() || graph.nodes[units_.back()[0]].group != group)
        units_.emplace_back();
      units_.back().push_back(n);
    }
  }

  std::vector<NodeId> run(int64_t prefetch) {
    sink_to_first_use();
    put_off_dependents();
    clear_last();
    sink_to_first_use();
    start_gathers_early(prefetch);
    std::vector<NodeId> order;
    for (const Unit& unit : units_) order.insert(order.end(), unit.begin(), unit.end());
    return order;
  }

 private:
  const Node& node(const Unit& unit) const { return graph_.nodes[unit[0]]; }

  // Needs nothing but states: it may start as early as one likes.
  bool gathers_states(const Unit& unit) const {
    if (node(unit).op != "all_gather") return false;
    return std::all_of(node(unit).operands.begin(), node(unit).operands.end(),
                       [&](ValueId operand) { return graph_.producer(operand).op == "read"; });
  }

  bool is_reduction(const Unit& unit) const { return is_collective(node(unit)) && !gathers_states(unit); }

  // Costs nothing, or is started when it is needed.
  bool is_free(const Unit& unit) const {
    const Node& n = node(unit);
    return n.op == "read" || n.op == "constant" || op_of(n).computes_nothing() || gathers_states(unit);
  }

  // Computes something of gathered weights alone, as what they were quantized from. `gathered`, by value: is
  // made of gathered weights and states.
  bool prepares_weights(const Unit& unit, const std::vector<bool>& gathered) const {
    bool any = false;
    for (NodeId n : unit) {
      if (is_collective(graph_.nodes[n]) || graph_.nodes[n].op == "write") return false;
      for (ValueId operand : graph_.nodes[n].operands) {
        if (operand == kNone) continue;
        const NodeId producer = graph_.values[operand].producer;
        const std::string& op = graph_.nodes[producer].op;
        any = any || gathered[operand];
        if (!gathered[operand] && op != "read" && op != "constant" &&
            std::find(unit.begin(), unit.end(), producer) == unit.end())
          return false;
      }
    }
    return any;
  }

  // What may run as late as one likes, by unit.
  std::vector<bool> find_movable() const {
    std::vector<bool> movable, gathered(graph_.values.size(), false);
    for (const Unit& unit : units_) {
      const bool is_gathered = gathers_states(unit) || prepares_weights(unit, gathered);
      movable.push_back(is_gathered || (unit.size() == 1 && is_free(unit)));
      for (NodeId n : unit)
        for (ValueId result : graph_.nodes[n].results) gathered[result] = is_gathered;
    }
    return movable;
  }

  // Passes before this one may have put what is movable anywhere before its use.
  void sink_to_first_use() {
    const std::vector<bool> movable = find_movable();
    std::vector<const Unit*> unit_of(graph_.values.size(), nullptr);  // by result of what is movable
    for (size_t u = 0; u < units_.size(); ++u)
      if (movable[u])
        for (NodeId n : units_[u])
          for (ValueId result : graph_.nodes[n].results) unit_of[result] = &units_[u];
    std::vector<Unit> placed;
    std::vector<bool> is_placed(graph_.nodes.size(), false);
    const std::function<void(const Unit&)> place = [&](const Unit& unit) {
      if (is_placed[unit[0]]) return;
      for (NodeId n : unit) {
        is_placed[n] = true;
        for (ValueId operand : graph_.nodes[n].operands)
          if (operand != kNone && unit_of[operand] != nullptr && unit_of[operand] != &unit)
            place(*unit_of[operand]);
      }
      placed.push_back(unit);
    };
    for (size_t u = 0; u < units_.size(); ++u)
      if (!movable[u]) place(units_[u]);
    for (const Unit& unit : units_) place(unit);  // outputs
    units_ = std::move(placed);
  }

  // A state that gets a constant for the next step keeps its value until everything has been done with it.
  void clear_last() {
    std::stable_partition(units_.begin(), units_.end(), [&](const Unit& unit) {
      return node(unit).op != "write" || graph_.producer(node(unit).operands[0]).op != "constant";
    });
  }

  bool is_late(const Unit& unit) const {
    for (NodeId n : unit)
      for (ValueId operand : graph_.nodes[n].operands)
        if (operand != kNone && late_[operand]) return true;
    return false;
  }

  void mark_late(const Unit& unit) {
    for (NodeId n : unit)
      for (ValueId result : graph_.nodes[n].results) late_[result] = true;
  }

  // What depends on a reduction comes when the next reduction starts, or at the end.
  void put_off_dependents() {
    std::vector<Unit> placed, put_off;
    auto add = [&](const Unit& unit) {
      if (is_late(unit)) {
        mark_late(unit);
        put_off.push_back(unit);
        return;
      }
      if (is_reduction(unit)) mark_late(unit);
      placed.push_back(unit);
    };
    auto catch_up = [&] {
      const std::vector<Unit> waiting = std::exchange(put_off, {});
      late_.assign(late_.size(), false);
      for (const Unit& unit : waiting) add(unit);
    };
    for (const Unit& unit : units_) {
      if (is_reduction(unit) && !is_late(unit)) catch_up();
      add(unit);
    }
    while (!put_off.empty()) catch_up();
    units_ = std::move(placed);
  }

  // The first unit from `begin` on that needs a result of the unit there, also through views.
  size_t first_use(size_t begin) {
    late_.assign(late_.size(), false);
    mark_late(units_[begin]);
    for (size_t u = begin + 1; u < units_.size(); ++u) {
      if (!is_late(units_[u])) continue;
      if (!op_of(node(units_[u])).computes_nothing()) return u;
      mark_late(units_[u]);
    }
    return units_.size();
  }

  void start_gathers_early(int64_t prefetch) {
    std::vector<size_t> gathers, first_uses;
    for (size_t u = 0; u < units_.size(); ++u)
      if (gathers_states(units_[u])) {
        gathers.push_back(u);
        first_uses.push_back(first_use(u));
      }
    std::vector<std::vector<size_t>> before(units_.size() + 1);  // gathers to start before each unit
    std::vector<bool> moves(units_.size(), false);
    for (size_t k = 0; k < gathers.size(); ++k) {
      const auto ahead = static_cast<int64_t>(k) - prefetch;
      size_t start = ahead < 0 ? 0 : first_uses[static_cast<size_t>(ahead)];
      start = std::min(start, gathers[k]);
      before[start].push_back(gathers[k]);
      moves[gathers[k]] = true;
    }
    std::vector<Unit> placed;
    std::vector<bool> is_placed(graph_.nodes.size(), false);
    auto place = [&](const Unit& unit) {
      if (is_placed[unit[0]]) return;
      placed.push_back(unit);
      for (NodeId n : unit) is_placed[n] = true;
    };
    for (size_t u = 0; u < units_.size(); ++u) {
      for (size_t gather : before[u]) {
        for (ValueId operand : node(units_[gather]).operands) place({graph_.values[operand].producer});
        place(units_[gather]);
      }
      if (!moves[u]) place(units_[u]);
    }
    units_ = std::move(placed);
  }

  const Graph& graph_;
  std::vector<Unit> units_;
  std::vector<bool> late_;  // by value: depends on what is looked at just now
};

}  // namespace

bool is_collective(const Node& node) {
  return op_of(node).collective != nullptr;
}

std::vector<NodeId> overlap_collectives(const Graph& graph, const std::vector<NodeId>& order,
                                        int64_t prefetch) {
  return Overlap(graph, order).run(prefetch);
}

}  // namespace kumi
