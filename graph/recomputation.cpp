#include "graph/recomputation.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "graph/op.h"
#include "graph/planned_memory.h"

namespace kumi {
namespace {

constexpr NodeId kNever = std::numeric_limits<NodeId>::max();

// Work is counted in FLOPs; a byte that an element-wise kernel moves takes as long as some FLOPs of a
// matrix product do (10 to 20 on a CPU, 100 and more on a GPU).
constexpr double kFlopsPerByte = 16;

// Longer chains are never worth it; the limit keeps the choice fast on any graph.
constexpr size_t kLongestChain = 512;

// Values that lie in memory, seen through views: whose storage a value shows.
class Storage {
 public:
  explicit Storage(const Graph& graph) : roots_(graph.values.size()) {
    for (const Node& node : graph.nodes)
      for (ValueId result : node.results) {
        if (op_of(node).computes_nothing()) {
          for (ValueId operand : node.operands)
            if (operand != kNone)
              roots_[result].insert(roots_[result].end(), roots_[operand].begin(), roots_[operand].end());
        } else {
          roots_[result] = {result};
        }
      }
  }
  const std::vector<ValueId>& roots(ValueId value) const { return roots_[value]; }

 private:
  std::vector<std::vector<ValueId>> roots_;
};

// What the backward part uses, and which of it is kept.
class Kept {
 public:
  explicit Kept(const SplitGraph& split)
      : graph_(*split.graph),
        last_forward_(split.last_forward),
        storage_(graph_),
        used_late_(graph_.values.size(), false),
        dropped_(graph_.nodes.size(), false) {
    for (NodeId n = last_forward_ + 1; n < static_cast<NodeId>(graph_.nodes.size()); ++n)
      for (ValueId operand : graph_.nodes[n].operands)
        if (operand != kNone)
          for (ValueId root : storage_.roots(operand)) used_late_[root] = true;
    for (const Output& output : graph_.outputs)
      for (ValueId root : storage_.roots(output.value)) used_late_[root] = true;
  }

  const std::vector<ValueId>& roots(ValueId value) const { return storage_.roots(value); }
  bool is_forward(ValueId value) const { return graph_.values[value].producer <= last_forward_; }
  bool is_used_late(ValueId root) const { return used_late_[root]; }

  void drop(NodeId node) { dropped_[node] = true; }
  void keep(NodeId node) { dropped_[node] = false; }
  bool is_dropped(NodeId node) const { return dropped_[node]; }

  // Is the value there, for the backward part, without computing anything?
  bool is_kept(ValueId value) const {
    for (ValueId root : roots(value)) {
      const NodeId producer = graph_.values[root].producer;
      if (graph_.nodes[producer].operands.empty() || producer > last_forward_) continue;
      if (dropped_[producer] || !used_late_[root]) return false;
    }
    return true;
  }

  // The nodes to compute again before `value` is there, but for those that `is_done` says are: in no
  // particular order, at most `most`. Each is marked in `seen` with `mark`.
  template <typename IsDone>
  std::vector<NodeId> missing_for(ValueId value, IsDone is_done, size_t most, std::vector<NodeId>* seen,
                                  NodeId mark) const {
    std::vector<NodeId> missing;
    auto visit = [&](ValueId v) {
      const NodeId producer = graph_.values[v].producer;
      if (is_kept(v) || (*seen)[producer] == mark || is_done(producer)) return;
      (*seen)[producer] = mark;
      missing.push_back(producer);
    };
    visit(value);
    for (size_t i = 0; i < missing.size() && missing.size() <= most; ++i)
      for (ValueId operand : graph_.nodes[missing[i]].operands)
        if (operand != kNone) visit(operand);
    return missing;
  }

 private:
  const Graph& graph_;
  const NodeId last_forward_;
  const Storage storage_;
  std::vector<bool> used_late_;  // by value, those with storage
  std::vector<bool> dropped_;    // by node
};

// The estimate of the memory over time, one moment a node of the graph as it is before recomputation.
class Choice {
 public:
  Choice(const SplitGraph& split, const Graph& planned)
      : graph_(*split.graph),
        last_forward_(split.last_forward),
        end_(static_cast<NodeId>(graph_.nodes.size())),
        kept_(split),
        seen_(graph_.nodes.size(), kNone),
        is_out_(graph_.nodes.size(), false) {
    collect_bytes(planned);
    collect_forward_uses();
    collect_candidates();
  }

  std::vector<Drop> run() {
    std::vector<Drop> drops;
    live_ = live_bytes();
    std::vector<bool> is_stuck(live_.size(), false);
    while (true) {
      const NodeId moment = highest(is_stuck);
      if (moment == kNone) return drops;
      const NodeId best = best_at(moment);
      if (best == kNone) {
        is_stuck[moment] = true;
        continue;
      }
      const int64_t before = *std::max_element(live_.begin(), live_.end());
      kept_.drop(best);
      std::vector<int64_t> live = live_bytes();
      const int64_t after = *std::max_element(live.begin(), live.end());
      is_out_[best] = true;
      if (after > before) {  // what it needs comes back too early, at another moment
        kept_.keep(best);
        (void)live_bytes();
        continue;
      }
      live_ = std::move(live);
      drops.push_back({best, after});
    }
  }

 private:
  // Moments this far below the highest are looked at too: the estimate does not know what later passes
  // make of the copies.
  static constexpr double kNearHighest = 0.9;

  void collect_bytes(const Graph& planned) {
    std::unordered_map<std::string, const Value*> by_name;
    for (const Value& value : planned.values) by_name.emplace(value.name, &value);
    bytes_.assign(graph_.values.size(), 0);
    is_output_.assign(graph_.values.size(), false);
    for (size_t v = 0; v < graph_.values.size(); ++v) {
      const auto found = by_name.find(graph_.values[v].name);
      const bool is_view = op_of(graph_.producer(static_cast<ValueId>(v))).computes_nothing();
      const bool is_in_arena =
          found == by_name.end() || (found->second->placement && found->second->placement->state.empty());
      if (!is_view && is_in_arena) bytes_[v] = buffer_bytes(graph_.values[v].type);
    }
    for (const Output& output : planned.outputs) {
      const ValueId value = graph_.find_value(planned.values[output.value].name);
      if (value == kNone) continue;
      for (ValueId root : kept_.roots(value)) is_output_[root] = true;
    }
  }

  void collect_forward_uses() {
    forward_end_.resize(graph_.values.size());
    for (size_t v = 0; v < graph_.values.size(); ++v) forward_end_[v] = graph_.values[v].producer;
    for (NodeId n = 0; n <= last_forward_; ++n)
      for (ValueId operand : graph_.nodes[n].operands)
        if (operand != kNone)
          for (ValueId root : kept_.roots(operand)) forward_end_[root] = std::max(forward_end_[root], n);
  }

  void collect_candidates() {
    work_.assign(graph_.nodes.size(), 0);
    for (NodeId n = 0; n <= last_forward_; ++n) {
      const Node& node = graph_.nodes[n];
      const OpDef& op = op_of(node);
      const Cost cost = cost_of(graph_, node);
      work_[n] = cost.flops + kFlopsPerByte * cost.bytes;
      if (op.computes_nothing() || op.is_state_access || node.operands.empty()) continue;
      int64_t bytes = 0;
      bool is_output = false;
      for (ValueId result : node.results) {
        if (kept_.is_used_late(result)) bytes += bytes_[result];
        is_output = is_output || is_output_[result];
      }
      if (bytes > 0 && !is_output) candidates_.push_back(n);
    }
  }

  // Fills in when each node is computed again and how long each value and each copy lives, and gives
  // the bytes alive at each moment.
  std::vector<int64_t> live_bytes() {
    again_at_.assign(graph_.nodes.size(), kNever);
    end_of_.assign(forward_end_.begin(), forward_end_.end());
    copy_end_.assign(graph_.values.size(), kNone);
    first_need_.assign(graph_.values.size(), kNever);
    auto use = [&](ValueId value, NodeId moment) {
      for (ValueId root : kept_.roots(value)) {
        const bool is_copy = kept_.is_forward(root) && !kept_.is_kept(root);
        std::vector<NodeId>& end = is_copy ? copy_end_ : end_of_;
        end[root] = std::max(end[root], moment);
        first_need_[root] = std::min(first_need_[root], moment);
      }
    };
    const auto is_done = [&](NodeId n) { return again_at_[n] != kNever; };
    std::fill(seen_.begin(), seen_.end(), kNone);
    for (NodeId n = last_forward_ + 1; n < end_; ++n)
      for (ValueId operand : graph_.nodes[n].operands) {
        if (operand == kNone) continue;
        use(operand, n);
        if (!kept_.is_forward(operand)) continue;
        for (NodeId again : kept_.missing_for(operand, is_done, graph_.nodes.size(), &seen_, n)) {
          again_at_[again] = n;
          for (ValueId needed : graph_.nodes[again].operands)
            if (needed != kNone) use(needed, n);
        }
      }
    for (size_t v = 0; v < graph_.values.size(); ++v)
      if (is_output_[v]) end_of_[v] = end_;

    std::vector<int64_t> change(static_cast<size_t>(end_) + 2, 0);
    auto add = [&](NodeId from, NodeId to, int64_t bytes) {
      change[static_cast<size_t>(from)] += bytes;
      change[static_cast<size_t>(to) + 1] -= bytes;
    };
    for (size_t v = 0; v < graph_.values.size(); ++v) {
      if (bytes_[v] == 0) continue;
      const NodeId producer = graph_.values[v].producer;
      add(producer, end_of_[v], bytes_[v]);
      if (again_at_[producer] != kNever)
        add(again_at_[producer], std::max(copy_end_[v], again_at_[producer]), bytes_[v]);
    }
    std::vector<int64_t> live(static_cast<size_t>(end_) + 1, 0);
    int64_t sum = 0;
    for (size_t i = 0; i < live.size(); ++i) live[i] = sum += change[i];
    return live;
  }

  NodeId highest(const std::vector<bool>& is_stuck) const {
    size_t best = live_.size(), top = 0;
    for (size_t i = 0; i < live_.size(); ++i) {
      if (live_[i] > live_[top]) top = i;
      if (!is_stuck[i] && (best == live_.size() || live_[i] > live_[best])) best = i;
    }
    const bool is_near = best < live_.size() &&
                         static_cast<double>(live_[best]) > kNearHighest * static_cast<double>(live_[top]);
    return is_near ? static_cast<NodeId>(best) : kNone;
  }

  // The candidate that frees most bytes at the moment for its work; kNone if none frees any. Of equal
  // ones the first, which is needed last.
  NodeId best_at(NodeId moment) {
    NodeId best = kNone;
    double best_ratio = 0;
    for (NodeId candidate : candidates_) {
      if (is_out_[candidate]) continue;
      const double ratio = bytes_for_work(candidate, moment);
      if (ratio > best_ratio) {
        best = candidate;
        best_ratio = ratio;
      }
    }
    return best;
  }

  double bytes_for_work(NodeId candidate, NodeId moment) {
    const Node& node = graph_.nodes[candidate];
    NodeId need = kNever;  // when it would be computed again
    for (ValueId result : node.results) need = std::min(need, first_need_[result]);
    if (need <= moment) return 0;
    int64_t bytes = 0;
    ValueId wanted = kNone;
    for (ValueId result : node.results) {
      if (!kept_.is_used_late(result)) continue;
      wanted = result;
      if (forward_end_[result] < moment) bytes += bytes_[result];
    }
    if (bytes <= 0) return 0;
    kept_.drop(candidate);
    --mark_;
    const std::vector<NodeId> again = kept_.missing_for(
        wanted, [&](NodeId n) { return again_at_[n] <= need; }, kLongestChain, &seen_, mark_);
    double work = 0;
    std::vector<ValueId> stay;  // operands that would have to be there for longer
    for (NodeId n : again) {
      if (again_at_[n] == kNever) work += work_[n];
      for (ValueId operand : graph_.nodes[n].operands)
        if (operand != kNone && kept_.is_kept(operand))
          for (ValueId root : kept_.roots(operand))
            if (end_of_[root] < moment) stay.push_back(root);
    }
    std::sort(stay.begin(), stay.end());
    stay.erase(std::unique(stay.begin(), stay.end()), stay.end());
    for (ValueId root : stay) bytes -= bytes_[root];
    kept_.keep(candidate);
    if (bytes <= 0 || again.size() > kLongestChain) return 0;
    return static_cast<double>(bytes) / std::max(work, 1.0);
  }

  const Graph& graph_;
  const NodeId last_forward_;
  const NodeId end_;
  Kept kept_;
  std::vector<NodeId> seen_;         // by node, scratch
  NodeId mark_ = kNone;              // below kNone: never a moment
  std::vector<bool> is_out_;         // by node: dropped, or refused
  std::vector<int64_t> bytes_;       // by value; 0 for views and what lives in registers or states
  std::vector<bool> is_output_;      // by value, after planning
  std::vector<NodeId> forward_end_;  // by value: its last use in the forward part
  std::vector<double> work_;         // by node
  std::vector<NodeId> candidates_;
  // Of what is dropped so far:
  std::vector<int64_t> live_;       // by moment
  std::vector<NodeId> again_at_;    // by node: the backward node before which it is computed again
  std::vector<NodeId> end_of_;      // by value: its last use
  std::vector<NodeId> copy_end_;    // by value: the last use of its copy
  std::vector<NodeId> first_need_;  // by value: the first use in the backward part
};

// Appends nodes to a graph, values numbered in the order of the nodes that produce them.
class Rewriting {
 public:
  explicit Rewriting(const Graph& from)
      : from_(from), names_(from), original_(from.values.size(), kNone), copy_(from.values.size(), kNone) {
    to_.name = from.name;
  }

  // `value_of` gives the new value of an operand.
  template <typename ValueOf>
  void append(NodeId n, bool recomputed, ValueOf value_of) {
    Node node = from_.nodes[n];
    node.recomputed = node.recomputed || recomputed;
    for (ValueId& operand : node.operands)
      if (operand != kNone) operand = value_of(operand);
    for (ValueId& id : node.results) {
      Value value = from_.values[id];
      if (recomputed) value.name = names_.unique(value.name + ".recomputed");
      value.producer = static_cast<NodeId>(to_.nodes.size());
      (recomputed ? copy_ : original_)[id] = static_cast<ValueId>(to_.values.size());
      id = static_cast<ValueId>(to_.values.size());
      to_.values.push_back(std::move(value));
    }
    to_.nodes.push_back(std::move(node));
  }

  ValueId original(ValueId value) const { return original_[value]; }
  ValueId copy(ValueId value) const { return copy_[value]; }

  Graph finish() {
    for (const Output& output : from_.outputs) to_.outputs.push_back({output.name, original(output.value)});
    return std::move(to_);
  }

 private:
  const Graph& from_;
  Graph to_;
  NameTable names_;
  std::vector<ValueId> original_, copy_;
};

}  // namespace

SplitGraph split_at_backward(const Module& module, const Graph& gradient) {
  std::vector<bool> needed(gradient.nodes.size(), false);
  for (const Output& output : gradient.outputs) {
    const State* state =
        output.name.starts_with("grad.") ? module.find_state(output.name.substr(5)) : nullptr;
    if (state == nullptr || state->kind != State::kWeight)
      needed[gradient.values[output.value].producer] = true;
  }
  SplitGraph split{&gradient, kNone};
  for (size_t n = gradient.nodes.size(); n-- > 0;) {
    if (!needed[n]) continue;
    split.last_forward = std::max(split.last_forward, static_cast<NodeId>(n));
    for (ValueId operand : gradient.nodes[n].operands)
      if (operand != kNone) needed[gradient.values[operand].producer] = true;
  }
  return split;
}

std::vector<Drop> order_of_dropping(const SplitGraph& split, const Graph& planned) {
  return Choice(split, planned).run();
}

Graph with_recomputation(const SplitGraph& split, const std::vector<Drop>& drops, size_t count) {
  const Graph& graph = *split.graph;
  Kept kept(split);
  for (size_t i = 0; i < count; ++i) kept.drop(drops[i].node);
  Rewriting rewriting(graph);
  std::vector<NodeId> seen(graph.nodes.size(), kNone);
  std::vector<bool> is_copied(graph.nodes.size(), false);
  const auto value_of = [&](ValueId value) {
    return kept.is_forward(value) && !kept.is_kept(value) ? rewriting.copy(value) : rewriting.original(value);
  };
  for (NodeId n = 0; n < static_cast<NodeId>(graph.nodes.size()); ++n) {
    if (n <= split.last_forward) {
      rewriting.append(n, false, [&](ValueId value) { return rewriting.original(value); });
      continue;
    }
    std::vector<NodeId> missing;
    for (ValueId operand : graph.nodes[n].operands) {
      if (operand == kNone || !kept.is_forward(operand)) continue;
      const std::vector<NodeId> more =
          kept.missing_for(operand, [&](NodeId m) { return is_copied[m]; }, graph.nodes.size(), &seen, n);
      missing.insert(missing.end(), more.begin(), more.end());
    }
    std::sort(missing.begin(), missing.end());
    for (NodeId again : missing) {
      rewriting.append(again, true, value_of);
      is_copied[again] = true;
    }
    rewriting.append(n, false, value_of);
  }
  return rewriting.finish();
}

}  // namespace kumi
