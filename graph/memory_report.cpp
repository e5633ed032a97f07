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

struct LiveRange {
  ValueId value = kNone;
  int64_t begin = 0, end = 0;  // bytes of the arena
  int first = 0, last = 0;     // units
};

// The buffers of a planned arena as its places tell them: views and parts belong to what they show.
std::vector<LiveRange> live_ranges(const Graph& graph, const std::vector<Unit>& units) {
  std::vector<int> unit_of(graph.nodes.size());
  for (size_t u = 0; u < units.size(); ++u)
    for (NodeId n : units[u]) unit_of[n] = static_cast<int>(u);
  const Uses uses(graph);
  std::vector<int> last_use(graph.values.size());
  for (size_t v = graph.values.size(); v-- > 0;) {  // views come after what they show
    int& last = last_use[v];
    last = uses.is_output[v] ? static_cast<int>(units.size()) - 1 : unit_of[graph.values[v].producer];
    for (NodeId consumer : uses.consumers[v]) {
      last = std::max(last, unit_of[consumer]);
      const OpDef& op = op_of(graph.nodes[consumer]);
      if (op.is_view || op.moves_parts)
        for (ValueId result : graph.nodes[consumer].results) last = std::max(last, last_use[result]);
    }
  }
  std::vector<LiveRange> ranges;
  for (size_t v = 0; v < graph.values.size(); ++v) {
    const Value& value = graph.values[v];
    const Node& producer = graph.nodes[value.producer];
    if (!value.placement || !value.placement->state.empty() || op_of(producer).is_view) continue;
    // Parts of larger values are among what the larger value holds.
    if (!value.placement->strides.empty()) continue;
    const int64_t begin = value.placement->offset;
    ranges.push_back({static_cast<ValueId>(v), begin, begin + buffer_bytes(value.type),
                      producer.op == "input" ? 0 : unit_of[value.producer], last_use[v]});
  }
  return ranges;
}

// Bytes that the ranges alive at a unit cover; one computed in place of another counts once. The ranges
// are sorted by their beginning.
int64_t covered_bytes(const std::vector<LiveRange>& ranges, int unit) {
  int64_t covered = 0, end = 0;
  for (const LiveRange& range : ranges) {
    if (unit < range.first || range.last < unit || range.end <= end) continue;
    covered += range.end - std::max(range.begin, end);
    end = range.end;
  }
  return covered;
}

int fullest_unit(const std::vector<LiveRange>& ranges, size_t units) {
  int fullest = 0;
  int64_t most = 0;
  for (size_t u = 0; u < units; ++u) {
    const int64_t covered = covered_bytes(ranges, static_cast<int>(u));
    if (covered <= most) continue;
    most = covered;
    fullest = static_cast<int>(u);
  }
  return fullest;
}

void describe_peak(const Graph& graph, MemoryReport* report) {
  const std::vector<Unit> units = units_of(graph);
  std::vector<LiveRange> ranges = live_ranges(graph, units);
  if (ranges.empty()) return;
  std::stable_sort(ranges.begin(), ranges.end(),
                   [](const LiveRange& a, const LiveRange& b) { return a.begin < b.begin; });
  const int peak = fullest_unit(ranges, units.size());
  for (NodeId n : units[peak])
    if (!graph.nodes[n].results.empty()) report->peak_at = graph.values[graph.nodes[n].results[0]].name;
  std::erase_if(ranges, [&](const LiveRange& range) { return peak < range.first || range.last < peak; });
  // Bytes that two buffers share, one computed in place of the other, count for the first.
  std::map<std::pair<std::string, std::string>, LiveBuffers> groups;
  int64_t end = 0;
  for (const LiveRange& range : ranges) {
    const Node& producer = graph.producer(range.value);
    LiveBuffers& group = groups[{fold_layer(producer.scope), producer.op}];
    group.count += 1;
    group.bytes += std::max<int64_t>(0, range.end - std::max(range.begin, end));
    end = std::max(end, range.end);
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
                                                      : report.accumulators;
    kind += buffer_bytes(state.type);
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
