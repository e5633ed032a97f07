// Liveness over the units that run, then best-fit offsets, largest buffers first.
//
// No storage: values inside one group that nothing else needs, and constants written into kernels.
// State storage: what `read` gives, unless it is needed after the state's write (then it is copied into
// the arena), and what a `write` stores if it can be computed in place.
// Views share their operand's place. Everything else gets an interval [first unit, last unit] and an
// offset in the arena such that buffers alive at the same time do not overlap.
// In place is allowed when no unit after the producing one reads the old value, and the producing
// unit itself reads it element by element at the place it writes, or leaves it there but for what it
// writes (OpDef::in_place_operand).
#include "graph/passes/memory.h"

#include <algorithm>
#include <map>

#include "graph/op.h"
#include "graph/reorder.h"
#include "graph/uses.h"

namespace kumi {
namespace {

struct Buffer {
  ValueId value = kNone;
  int64_t bytes = 0;
  int first = 0;
  int last = 0;
  int64_t offset = 0;
};

class GraphMemory {
 public:
  explicit GraphMemory(Graph* graph)
      : graph_(*graph), uses_(*graph), units_(units_of(*graph)), unit_of_(graph->nodes.size()) {
    for (size_t u = 0; u < units_.size(); ++u)
      for (NodeId n : units_[u]) unit_of_[n] = static_cast<int>(u);
  }

  void run() {
    for (Value& value : graph_.values) value.placement.reset();
    place_states();
    collect_buffers();
    assign_offsets();
    for (const Buffer& buffer : buffers_)
      graph_.values[buffer.value].placement = Placement{"", buffer.offset};
    place_views();
  }

 private:
  bool is_view(ValueId value) const { return op_of(graph_.producer(value)).is_view; }

  // The value whose storage a view shows.
  ValueId root(ValueId value) const {
    while (is_view(value)) value = graph_.producer(value).operands[0];
    return value;
  }

  // The last unit that uses a value or a view of it.
  int last_use(ValueId value) const {
    int last = unit_of_[graph_.values[value].producer];
    if (uses_.is_output[value]) return static_cast<int>(units_.size());
    for (NodeId consumer : uses_.consumers[value]) {
      last = std::max(last, unit_of_[consumer]);
      if (op_of(graph_.nodes[consumer]).is_view)
        for (ValueId result : graph_.nodes[consumer].results) last = std::max(last, last_use(result));
    }
    return last;
  }

  void place_states() {
    std::map<std::string, std::vector<ValueId>> reads;
    std::map<std::string, int> write_unit;
    for (size_t n = 0; n < graph_.nodes.size(); ++n) {
      const Node& node = graph_.nodes[n];
      if (node.op == "read") reads[string_attribute(node.attributes, "state")].push_back(node.results[0]);
      if (node.op == "write") write_unit[string_attribute(node.attributes, "state")] = unit_of_[n];
    }
    for (const auto& [state, values] : reads)
      for (ValueId read : values) {
        auto write = write_unit.find(state);
        if (write == write_unit.end() || last_use(read) <= write->second)
          graph_.values[read].placement = Placement{state, 0};
      }
    for (const Node& node : graph_.nodes) {
      if (node.op != "write") continue;
      const std::string& state = string_attribute(node.attributes, "state");
      ValueId value = node.operands[0];
      const Node& producer = graph_.producer(value);
      int unit = unit_of_[graph_.values[value].producer];
      bool in_place = !is_view(value) && !op_of(producer).is_state_access &&
                      !graph_.values[value].placement && !uses_.is_output[value] &&
                      !is_inlined_constant(graph_, uses_, value);
      for (ValueId read : reads[state])
        in_place =
            in_place && last_use(read) <= unit &&
            (last_use(read) < unit || reads_by_element(unit, read, value) || continues(producer, read));
      if (in_place) graph_.values[value].placement = Placement{state, 0};
    }
  }

  // Is `old` what the node changes a part of, and nothing else to it?
  bool continues(const Node& node, ValueId old) const {
    const std::optional<size_t> changed = op_of(node).in_place_operand;
    if (!changed) return false;
    for (size_t i = 0; i < node.operands.size(); ++i)
      if (node.operands[i] != kNone && (root(node.operands[i]) == old) != (i == *changed)) return false;
    return true;
  }

  // Does the unit read `old` only at the element of `result` that it computes?
  bool reads_by_element(int unit, ValueId old, ValueId result) const {
    for (NodeId n : units_[unit]) {
      const Node& node = graph_.nodes[n];
      if (!is_fusible(graph_, node) || fusion_of(graph_, node) != Fusion::kPointwise) return false;
      for (ValueId operand : node.operands)
        if (operand != kNone && root(operand) == old && !(graph_.type(operand) == graph_.type(result)))
          return false;
      for (ValueId written : node.results)
        if (!(graph_.type(written).shape == graph_.type(result).shape)) return false;
    }
    return true;
  }

  bool needs_storage(ValueId value) const {
    if (graph_.values[value].placement || is_view(value)) return false;
    const Node& producer = graph_.producer(value);
    if (is_inlined_constant(graph_, uses_, value)) return false;
    if (uses_.is_output[value] || producer.op == "input") return true;
    // A kernel of a single op may write results that nobody reads (statistics, scratch).
    if (!is_fusible(graph_, producer)) return true;
    int unit = unit_of_[graph_.values[value].producer];
    return std::any_of(uses_.consumers[value].begin(), uses_.consumers[value].end(),
                       [&](NodeId consumer) { return unit_of_[consumer] != unit; });
  }

  void collect_buffers() {
    for (size_t v = 0; v < graph_.values.size(); ++v) {
      ValueId value = static_cast<ValueId>(v);
      if (!needs_storage(value)) continue;
      Buffer buffer;
      buffer.value = value;
      int64_t bytes = byte_count(graph_.type(value));
      buffer.bytes = (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
      // Inputs are copied in before the first unit runs.
      buffer.first = graph_.producer(value).op == "input" ? 0 : unit_of_[graph_.values[value].producer];
      buffer.last = last_use(value);
      buffers_.push_back(buffer);
    }
  }

  void assign_offsets() {
    std::vector<size_t> order(buffers_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return buffers_[a].bytes > buffers_[b].bytes; });
    std::vector<size_t> placed;  // by offset
    int64_t arena = 0;
    for (size_t i : order) {
      Buffer& buffer = buffers_[i];
      int64_t best_offset = -1, best_gap = 0, end = 0;
      for (size_t p : placed) {
        const Buffer& other = buffers_[p];
        if (other.last < buffer.first || buffer.last < other.first) continue;
        int64_t gap = other.offset - end;
        if (gap >= buffer.bytes && (best_offset < 0 || gap < best_gap)) {
          best_offset = end;
          best_gap = gap;
        }
        end = std::max(end, other.offset + other.bytes);
      }
      buffer.offset = best_offset < 0 ? end : best_offset;
      arena = std::max(arena, buffer.offset + buffer.bytes);
      auto at = std::upper_bound(placed.begin(), placed.end(), buffer.offset,
                                 [&](int64_t offset, size_t p) { return offset < buffers_[p].offset; });
      placed.insert(at, i);
    }
    graph_.arena_bytes = arena;
    // The largest sum of buffers alive at once.
    std::vector<int64_t> change(units_.size() + 2, 0);
    for (const Buffer& buffer : buffers_) {
      change[buffer.first] += buffer.bytes;
      change[buffer.last + 1] -= buffer.bytes;
    }
    int64_t live = 0, peak = 0;
    for (int64_t delta : change) peak = std::max(peak, live += delta);
    graph_.arena_lower_bound = peak;
  }

  void place_views() {
    for (size_t v = 0; v < graph_.values.size(); ++v)
      if (is_view(static_cast<ValueId>(v)))
        graph_.values[v].placement = graph_.values[root(static_cast<ValueId>(v))].placement;
  }

  Graph& graph_;
  Uses uses_;
  std::vector<Unit> units_;
  std::vector<int> unit_of_;
  std::vector<Buffer> buffers_;
};

}  // namespace

Module memory(Module module, const PlanOptions&) {
  for (Graph& graph : module.graphs) GraphMemory(&graph).run();
  return module;
}

}  // namespace kumi
