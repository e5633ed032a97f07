#include "graph/memory_report.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "graph/names.h"
#include "graph/op.h"
#include "graph/quantity.h"
#include "graph/reorder.h"
#include "graph/uses.h"

namespace kumi {
namespace {

constexpr size_t kShownGroups = 5;  // of what is alive at the peak

// A piece of the arena: what one value fills, with those that show it, are parts of it or took its place.
struct Buffer {
  ValueId value = kNone;       // that names it: the largest that is computed, the first of several
  int64_t begin = 0, end = 0;  // bytes of the arena
  int first = 0, last = 0;     // units
};

// The buffers of a planned arena as the places of the values tell them: two values that a unit looks at
// and that overlap are in one buffer.
class Buffers {
 public:
  Buffers(const Graph& graph, const std::vector<Unit>& units)
      : graph_(graph), uses_(graph), units_(units), unit_of_(graph.nodes.size()) {
    for (size_t u = 0; u < units.size(); ++u)
      for (NodeId n : units[u]) unit_of_[n] = static_cast<int>(u);
    for (size_t v = 0; v < graph.values.size(); ++v) buffer_of_.push_back(static_cast<ValueId>(v));
    for (const Unit& unit : units) unite_overlapping(unit);
  }

  std::vector<Buffer> all() const {
    std::vector<Buffer> buffers(graph_.values.size());
    for (size_t v = 0; v < graph_.values.size(); ++v) {
      const auto value = static_cast<ValueId>(v);
      if (!is_in_arena(value)) continue;
      Buffer& buffer = buffers[root(value)];
      const int first = graph_.producer(value).op == "input" ? 0 : unit_of_[graph_.values[v].producer];
      int last = uses_.is_output[v] ? static_cast<int>(units_.size()) : first;
      for (NodeId consumer : uses_.consumers[v]) last = std::max(last, unit_of_[consumer]);
      if (buffer.value == kNone)
        buffer = {value, begin_of(value), end_of(value), first, last};
      else
        buffer = {is_better_name(value, buffer.value) ? value : buffer.value,
                  std::min(buffer.begin, begin_of(value)), std::max(buffer.end, end_of(value)),
                  std::min(buffer.first, first), std::max(buffer.last, last)};
    }
    std::erase_if(buffers, [](const Buffer& buffer) { return buffer.value == kNone; });
    for (Buffer& buffer : buffers) buffer.end = buffer.begin + aligned_bytes(buffer.end - buffer.begin);
    return buffers;
  }

 private:
  bool is_in_arena(ValueId value) const {
    const std::optional<Placement>& placement = graph_.values[value].placement;
    return placement && placement->state.empty();
  }

  int64_t begin_of(ValueId value) const { return graph_.values[value].placement->offset; }
  int64_t end_of(ValueId value) const {
    const std::vector<int64_t> strides = strides_of(graph_.values[value]);
    const Type& type = graph_.type(value);
    int64_t last = 0;  // element
    for (size_t axis = 0; axis < strides.size(); ++axis)
      last += strides[axis] * (type.shape[axis].number() - 1);
    return begin_of(value) + (last + 1) * size_of(type.dtype);
  }

  bool is_better_name(ValueId value, ValueId than) const {
    const auto rank = [&](ValueId v) {
      const OpDef& op = op_of(graph_.producer(v));
      return std::pair(!op.computes_nothing(), byte_count(graph_.type(v)));
    };
    return rank(value) > rank(than);
  }

  ValueId root(ValueId value) const {
    while (buffer_of_[value] != value) value = buffer_of_[value];
    return value;
  }

  void unite_overlapping(const Unit& unit) {
    std::vector<ValueId> values;
    const auto add = [&](ValueId value) {
      if (value != kNone && is_in_arena(value)) values.push_back(value);
    };
    for (NodeId n : unit) {
      for (ValueId operand : graph_.nodes[n].operands) add(operand);
      for (ValueId result : graph_.nodes[n].results) add(result);
    }
    std::sort(values.begin(), values.end(), [&](ValueId a, ValueId b) { return begin_of(a) < begin_of(b); });
    int64_t end = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i > 0 && begin_of(values[i]) < end) buffer_of_[root(values[i])] = root(values[i - 1]);
      end = std::max(end, end_of(values[i]));
    }
  }

  const Graph& graph_;
  const Uses uses_;
  const std::vector<Unit>& units_;
  std::vector<int> unit_of_;        // by node
  std::vector<ValueId> buffer_of_;  // by value: another of its buffer, itself for the last
};

int fullest_unit(const std::vector<Buffer>& buffers, size_t units) {
  std::vector<int64_t> change(units + 2, 0);
  for (const Buffer& buffer : buffers) {
    change[buffer.first] += buffer.end - buffer.begin;
    change[buffer.last + 1] -= buffer.end - buffer.begin;
  }
  int fullest = 0;
  int64_t live = 0, most = 0;
  for (size_t u = 0; u < units; ++u) {
    live += change[u];
    if (live <= most) continue;
    most = live;
    fullest = static_cast<int>(u);
  }
  return fullest;
}

void describe_peak(const Graph& graph, MemoryReport* report) {
  const std::vector<Unit> units = units_of(graph);
  std::vector<Buffer> buffers = Buffers(graph, units).all();
  if (buffers.empty()) return;
  const int peak = fullest_unit(buffers, units.size());
  for (NodeId n : units[peak])
    if (!graph.nodes[n].results.empty()) report->peak_at = graph.values[graph.nodes[n].results[0]].name;
  std::map<std::pair<std::string, std::string>, LiveBuffers> groups;
  for (const Buffer& buffer : buffers) {
    if (peak < buffer.first || buffer.last < peak) continue;
    const Node& producer = graph.producer(buffer.value);
    LiveBuffers& group = groups[{fold_layer(producer.scope), producer.op}];
    group.count += 1;
    group.bytes += buffer.end - buffer.begin;
  }
  for (auto& [key, group] : groups) {
    group.part = key.first;
    group.op = key.second;
    report->at_peak.push_back(group);
  }
  std::stable_sort(report->at_peak.begin(), report->at_peak.end(),
                   [](const LiveBuffers& a, const LiveBuffers& b) { return a.bytes > b.bytes; });
}

std::string recomputation_text(const MemoryReport& report) {
  const double kept = report.flops - report.recomputed_flops;
  char percent[32];
  std::snprintf(percent, sizeof percent, "%.1f%%", kept > 0 ? 100 * report.recomputed_flops / kept : 0);
  return concat(with_thousands(report.recomputed_nodes), " nodes recomputed, ", percent, " more FLOPs");
}

std::string right_aligned(const std::string& text) {
  constexpr size_t kWidth = 8;  // of "63.1 GB"
  return std::string(text.size() < kWidth ? kWidth - text.size() : 0, ' ') + text;
}

}  // namespace

MemoryReport report_memory(const Module& planned) {
  MemoryReport report;
  report.memory = planned_memory(planned);
  for (const State& state : planned.states) {
    int64_t& kind = state.kind == State::kWeight      ? report.weights
                    : state.kind == State::kOptimizer ? report.optimizer
                    : state.kind == State::kReplica   ? report.replicas
                                                      : report.accumulators;
    kind += byte_count(state.type);
  }
  const auto graph =
      std::max_element(planned.graphs.begin(), planned.graphs.end(),
                       [](const Graph& a, const Graph& b) { return *a.arena_bytes < *b.arena_bytes; });
  if (graph == planned.graphs.end()) return report;
  report.graph = graph->name;
  report.lower_bound = graph->arena_lower_bound.value_or(0);
  for (const Node& node : graph->nodes) {
    const double flops = cost_of(*graph, node).flops;
    report.flops += flops;
    if (!node.recomputed) continue;
    report.recomputed_flops += flops;
    if (!op_of(node).is_view) ++report.recomputed_nodes;
  }
  describe_peak(*graph, &report);
  return report;
}

std::string memory_line(const MemoryReport& report) {
  std::string text = concat(bytes_text(report.memory.activations), " activations, ",
                            bytes_text(report.memory.states), " states");
  if (report.recomputed_nodes > 0) text += concat("; ", recomputation_text(report));
  return text;
}

std::string to_string(const MemoryReport& report, const MemoryReport* without) {
  const PlannedMemory& memory = report.memory;
  std::string text =
      concat("memory      ", bytes_text(memory.total()), " planned: ", bytes_text(memory.states), " states, ",
             bytes_text(memory.activations), " activations\n");
  text += concat("            states: ", bytes_text(report.weights), " weights");
  if (report.replicas > 0) text += concat(", ", bytes_text(report.replicas), " replicas of weights");
  if (report.optimizer > 0) text += concat(", ", bytes_text(report.optimizer), " optimizer");
  if (report.accumulators > 0) text += concat(", ", bytes_text(report.accumulators), " gradients");
  text += "\n";
  if (report.lower_bound > 0) {
    char ratio[32];
    std::snprintf(ratio, sizeof ratio, "%.3f",
                  static_cast<double>(memory.activations) / static_cast<double>(report.lower_bound));
    text += concat("            activations: ", ratio, " of ", bytes_text(report.lower_bound),
                   ", the most that is alive at once, in '", report.graph, "' at ", report.peak_at, "\n");
  }
  int64_t shown = 0;
  for (size_t i = 0; i < report.at_peak.size() && i < kShownGroups; ++i) {
    const LiveBuffers& group = report.at_peak[i];
    text += concat("            ", right_aligned(bytes_text(group.bytes)), "  ", group.op,
                   group.count > 1 ? " x " : "", group.count > 1 ? std::to_string(group.count) : "",
                   group.part.empty() ? "" : " in ", group.part, "\n");
    shown += group.bytes;
  }
  if (report.at_peak.size() > kShownGroups) {
    int64_t rest = -shown;
    for (const LiveBuffers& group : report.at_peak) rest += group.bytes;
    text += concat("            ", right_aligned(bytes_text(rest)), "  others\n");
  }
  if (report.recomputed_nodes > 0) {
    text += concat("            ", recomputation_text(report));
    if (without != nullptr)
      text += concat(", saving ", bytes_text(without->memory.activations - memory.activations), " of ",
                     bytes_text(without->memory.activations), " activations");
    text += "\n";
  }
  return text;
}

}  // namespace kumi
