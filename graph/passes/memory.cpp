// Liveness over the units that run, then best-fit offsets, largest buffers first.
//
// No storage: values inside one group that nothing else needs, and constants written into kernels.
// State storage: what `read` gives, unless it is needed after the state's write (then it is copied into
// the arena), a concat of reads of states that follow each other in memory (state_layout.h), and what is
// written to states if it can be computed in place.
// Everything else gets an interval [first unit, last unit] and an offset in the arena such that buffers
// alive at the same time do not overlap. Which values share a buffer (views, parts of larger values) is
// found by Storages; a result takes the place of an operand that nobody needs any more and that is read
// element by element.
// In a state's storage a value is computed in place if no unit after the producing one reads the old
// value, and the producing unit itself reads it element by element at the place it writes.
#include "graph/passes/memory.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <set>

#include "graph/op.h"
#include "graph/parts.h"
#include "graph/passes/state_layout.h"
#include "graph/passes/storage.h"
#include "graph/planned_memory.h"

namespace kumi {
namespace {

struct Buffer {
  int storage = kNone;
  int64_t bytes = 0;
  int first = 0;
  int last = 0;
  int64_t offset = 0;
};

class GraphMemory {
 public:
  GraphMemory(Graph* graph, const Module& module, bool in_place)
      : graph_(*graph),
        uses_(*graph),
        units_(units_of(*graph)),
        storages_(*graph, uses_, units_),
        in_place_(in_place) {
    for (const State& state : module.states) states_[state.name] = &state;
  }

  void run() {
    state_of_.resize(storages_.all.size());
    find_writes();
    place_reads();
    place_gathered_reads();
    place_writes();
    if (in_place_) take_places();
    collect_buffers();
    assign_offsets();
    set_placements();
  }

 private:
  struct Write {
    const Node* node;
    int unit;
  };

  int64_t offset_of(const std::string& state) const { return *states_.at(state)->offset; }

  void find_writes() {
    for (size_t n = 0; n < graph_.nodes.size(); ++n)
      if (graph_.nodes[n].op == "write")
        writes_[string_attribute(graph_.nodes[n].attributes, "state")] = {&graph_.nodes[n],
                                                                          storages_.unit_of[n]};
  }

  // Nobody looks at the storage after the state has got its new value.
  bool is_used_up(const Storage& storage, const std::string& state) const {
    auto write = writes_.find(state);
    return write == writes_.end() || storage.last <= write->second.unit;
  }

  void place_reads() {
    for (const Node& node : graph_.nodes) {
      if (node.op != "read" || storages_.places[node.results[0]].storage == kNone) continue;
      const std::string& state = string_attribute(node.attributes, "state");
      const int storage = storages_.places[node.results[0]].storage;
      reads_[state].push_back(node.results[0]);
      if (is_used_up(storages_.all[storage], state)) state_of_[storage] = state;
    }
  }

  // A concat of reads is where the states are, if they follow each other.
  void place_gathered_reads() {
    for (const Node& node : graph_.nodes) {
      if (!op_of(node).moves_parts) continue;
      const Parts parts = parts_of(graph_, node);
      if (!parts.gathers || !storages_.fills(parts.whole)) continue;
      const int whole = storages_.places[parts.whole].storage;
      if (storages_.all[whole].is_shown || state_of_[whole]) continue;
      if (!is_leading(graph_.type(parts.whole).shape, parts.axis)) continue;
      std::vector<std::string> states;
      int64_t next = -1;
      for (const Part& part : parts.parts) {
        const int storage = storages_.places[part.value].storage;
        if (storage == kNone || !state_of_[storage] || !storages_.fills(part.value)) break;
        const std::string& state = *state_of_[storage];
        if (next >= 0 && offset_of(state) != next) break;
        if (!is_used_up(storages_.all[whole], state)) break;
        next = offset_of(state) + byte_count(states_.at(state)->type);
        states.push_back(state);
      }
      if (states.size() != parts.parts.size()) continue;
      state_of_[whole] = states[0];
      for (const std::string& state : states) reads_[state].push_back(parts.whole);
    }
  }

  // Where all that is written of a storage goes, if it goes to memory that it fills.
  std::optional<std::string> target_of(int storage, const std::vector<const Node*>& writes) const {
    int64_t begin = 0, bytes = 0;
    std::optional<std::string> first;
    for (const Node* write : writes) {
      const ValueId value = write->operands[0];
      const std::string& state = string_attribute(write->attributes, "state");
      const int64_t here = offset_of(state) - storages_.places[value].offset;
      if (!storages_.is_dense(value) || (bytes > 0 && here != begin)) return std::nullopt;
      begin = here;
      bytes += byte_count(graph_.type(value));
      if (storages_.places[value].offset == 0) first = state;
    }
    return bytes == storages_.all[storage].bytes ? first : std::nullopt;
  }

  void place_writes() {
    std::map<int, std::vector<const Node*>> by_storage;
    for (const auto& [state, write] : writes_) {
      const int storage = storages_.places[write.node->operands[0]].storage;
      if (storage != kNone) by_storage[storage].push_back(write.node);
    }
    for (const auto& [storage, writes] : by_storage) {
      if (storages_.all[storage].is_shown || state_of_[storage]) continue;
      const std::optional<std::string> target = target_of(storage, writes);
      if (target && old_values_are_used_up(storage, *target, writes)) state_of_[storage] = target;
    }
  }

  // May the storage be filled while the states still hold their old values?
  bool old_values_are_used_up(int storage, const std::string& target,
                              const std::vector<const Node*>& writes) const {
    const Storage& s = storages_.all[storage];
    for (ValueId value : s.values)
      if (op_of(graph_.producer(value)).is_state_access) return false;
    for (const Node* write : writes) {
      auto reads = reads_.find(string_attribute(write->attributes, "state"));
      if (reads == reads_.end()) continue;
      for (ValueId read : reads->second)
        if (!makes_way_for(storages_.places[read].storage, s, target)) return false;
    }
    return true;
  }

  // Does nothing look at a piece of the old values once a new one has been computed in its place? The unit
  // that computes it may, element by element.
  bool makes_way_for(int old_storage, const Storage& s, const std::string& target) const {
    const Storage& old = storages_.all[old_storage];
    if (old.last < s.first) return true;
    if (old.is_shown) return false;
    for (ValueId result : s.values) {
      if (op_of(graph_.producer(result)).computes_nothing()) continue;
      const int unit = storages_.unit_of_value(result);
      const Span written = span_of(result, target);
      for (ValueId operand : old.values)
        for (NodeId consumer : uses_.consumers[operand]) {
          const int look = storages_.last_look(consumer);
          if (look < unit || !may_meet(span_of(operand, state_of_[old_storage]), written)) continue;
          const bool same_place = state_of_[old_storage] &&
                                  begin_of(operand, *state_of_[old_storage]) == begin_of(result, target);
          if (look > unit || !same_place || !storages_.may_take_place(unit, operand, result)) return false;
        }
    }
    return true;
  }

  // Bytes among those of all states; none known where a value is in no state or has gaps.
  using Span = std::optional<std::pair<int64_t, int64_t>>;
  int64_t begin_of(ValueId value, const std::string& state) const {
    return offset_of(state) + storages_.places[value].offset;
  }
  Span span_of(ValueId value, const std::optional<std::string>& state) const {
    if (!state || !storages_.is_dense(value)) return std::nullopt;
    const int64_t begin = begin_of(value, *state);
    return std::pair{begin, begin + byte_count(graph_.type(value))};
  }
  static bool may_meet(const Span& a, const Span& b) {
    return !a || !b || (a->first < b->second && b->first < a->second);
  }

  // Results that take the place of an operand that is used for the last time, and operands that are
  // computed at once where the result will be, inside a larger value.
  void take_places() {
    for (size_t u = 0; u < units_.size(); ++u)
      for (NodeId n : units_[u])
        for (ValueId result : graph_.nodes[n].results) take_place(static_cast<int>(u), result);
  }

  bool is_in_arena(ValueId value) const {
    const int storage = storages_.places[value].storage;
    return storage != kNone && !state_of_[storage] && !storages_.all[storage].is_shown;
  }

  void take_place(int unit, ValueId result) {
    if (!is_in_arena(result)) return;
    for (NodeId n : units_[unit])
      for (ValueId operand : graph_.nodes[n].operands) {
        if (operand == kNone || !is_in_arena(operand) ||
            storages_.places[operand].storage == storages_.places[result].storage ||
            !storages_.may_take_place(unit, operand, result))
          continue;
        if (!storages_.is_last_use(unit, operand)) continue;
        if (saves_memory(result, operand) && storages_.move_into(result, storages_.places[operand])) return;
        if (saves_memory(operand, result) && storages_.is_free_before(unit, result) &&
            storages_.move_into(operand, storages_.places[result]))
          return;
      }
  }

  // Moving a value into another's storage saves its own, but may let the other live longer: bytes times
  // units of the plan, on both sides.
  bool saves_memory(ValueId moved, ValueId target) const {
    const Storage &own = storages_.storage_of(moved), &other = storages_.storage_of(target);
    const int longer =
        std::max(own.last, other.last) - std::min(own.first, other.first) - (other.last - other.first);
    return static_cast<double>(own.bytes) * (own.last - own.first + 1) >=
           static_cast<double>(other.bytes) * longer;
  }

  void collect_buffers() {
    for (size_t s = 0; s < storages_.all.size(); ++s) {
      const Storage& storage = storages_.all[s];
      if (storage.values.empty() || state_of_[s]) continue;
      Buffer buffer;
      buffer.storage = static_cast<int>(s);
      buffer.bytes = aligned_bytes(storage.bytes);
      buffer.first = storage.first;
      buffer.last = storage.last;
      buffers_.push_back(buffer);
    }
  }

  // No order of placing is the best for all graphs: that which needs least is taken.
  void assign_offsets() {
    const int64_t lower_bound = most_alive();
    const auto bytes = [](const Buffer& b) { return static_cast<double>(b.bytes); };
    const auto units = [](const Buffer& b) { return b.last - b.first + 1.0; };
    const std::function<std::pair<double, double>(const Buffer&)> orders[] = {
        [&](const Buffer& b) { return std::pair(bytes(b), 0.0); },
        [&](const Buffer& b) { return std::pair(units(b), bytes(b)); },
        [&](const Buffer& b) { return std::pair(bytes(b) * units(b), 0.0); },
        [&](const Buffer& b) { return std::pair(static_cast<double>(b.last), bytes(b)); },
        [&](const Buffer& b) { return std::pair(-static_cast<double>(b.first), bytes(b)); },
    };
    std::vector<int64_t> best;
    for (const auto& key : orders) {
      std::stable_sort(buffers_.begin(), buffers_.end(),
                       [&](const Buffer& a, const Buffer& b) { return key(a) > key(b); });
      const int64_t arena = place_in_order();
      if (!best.empty() && arena >= graph_.arena_bytes) continue;
      graph_.arena_bytes = arena;
      best.assign(storages_.all.size(), 0);
      for (const Buffer& buffer : buffers_) best[buffer.storage] = buffer.offset;
      if (arena == lower_bound) break;
    }
    for (Buffer& buffer : buffers_) buffer.offset = best[buffer.storage];
    graph_.arena_lower_bound = lower_bound;
  }

  // Each buffer in the smallest gap between those before it that it fits into. Returns the bytes of all.
  int64_t place_in_order() {
    std::vector<size_t> placed;  // by offset
    int64_t arena = 0;
    for (size_t i = 0; i < buffers_.size(); ++i) {
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
    return arena;
  }

  // The largest sum of buffers alive at once.
  int64_t most_alive() const {
    std::vector<int64_t> change(units_.size() + 2, 0);
    for (const Buffer& buffer : buffers_) {
      change[buffer.first] += buffer.bytes;
      change[buffer.last + 1] -= buffer.bytes;
    }
    int64_t live = 0, peak = 0;
    for (int64_t delta : change) peak = std::max(peak, live += delta);
    return peak;
  }

  void set_placements() {
    std::vector<int64_t> offsets(storages_.all.size(), 0);
    for (const Buffer& buffer : buffers_) offsets[buffer.storage] = buffer.offset;
    for (size_t v = 0; v < graph_.values.size(); ++v) {
      const Place& place = storages_.places[v];
      graph_.values[v].placement.reset();
      if (place.storage == kNone) continue;
      Placement placement{state_of_[place.storage].value_or(""), offsets[place.storage] + place.offset, {}};
      if (!storages_.is_dense(static_cast<ValueId>(v))) placement.strides = place.strides;
      graph_.values[v].placement = std::move(placement);
    }
  }

  Graph& graph_;
  Uses uses_;
  std::vector<Unit> units_;
  Storages storages_;
  bool in_place_;
  std::map<std::string, const State*> states_;
  std::map<std::string, std::vector<ValueId>> reads_;  // by state, the gathered ones as well
  std::map<std::string, Write> writes_;                // by state
  std::vector<std::optional<std::string>> state_of_;   // by storage: where it is, if not in the arena
  std::vector<Buffer> buffers_;
};

}  // namespace

Module memory(Module module, const PlanOptions& options) {
  lay_out_states(&module, kBufferAlignment);
  for (Graph& graph : module.graphs) GraphMemory(&graph, module, options.is_enabled("in_place")).run();
  const PlannedMemory needed = planned_memory(module);
  if (options.memory_limit > 0 && needed.total() > options.memory_limit)
    throw exceeds_limit(needed, options.memory_limit, false);
  return module;
}

}  // namespace kumi
