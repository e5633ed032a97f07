#include "graph/passes/storage.h"

#include <algorithm>
#include <utility>

#include "graph/op.h"
#include "graph/strides.h"

namespace kumi {
namespace {

std::vector<int64_t> shape_of(const Graph& graph, ValueId value) {
  return numbers(graph.type(value).shape);
}

}  // namespace

Storages::Storages(const Graph& graph, const Uses& uses, const std::vector<Unit>& units)
    : graph(graph), uses(uses), units(units), unit_of(graph.nodes.size()), places(graph.values.size()) {
  for (size_t u = 0; u < units.size(); ++u)
    for (NodeId n : units[u]) unit_of[n] = static_cast<int>(u);
  find_ends();
  for (const Node& node : graph.nodes) place_results(node);
  // From the last on, so that what a concat gathers may itself be gathered.
  for (size_t n = graph.nodes.size(); n-- > 0;)
    if (op_of(graph.nodes[n]).moves_parts && parts_of(graph, graph.nodes[n]).gathers) gather(graph.nodes[n]);
}

void Storages::find_ends() {
  done_at_ = unit_of;
  // By value: the first unit that needs it, also through views.
  std::vector<int> needed_at(graph.values.size(), static_cast<int>(units.size()));
  for (size_t n = graph.nodes.size(); n-- > 0;) {
    const Node& node = graph.nodes[n];
    int first = unit_of[n];
    if (op_of(node).computes_nothing()) {
      first = static_cast<int>(units.size());
      for (ValueId result : node.results) first = std::min(first, needed_at[result]);
    }
    for (ValueId operand : node.operands)
      if (operand != kNone) needed_at[operand] = std::min(needed_at[operand], first);
    if (node.stream == 0) continue;
    done_at_[n] = static_cast<int>(units.size());
    for (ValueId result : node.results) done_at_[n] = std::min(done_at_[n], needed_at[result]);
  }
}

bool Storages::is_dense(ValueId value) const {
  return is_row_major(shape_of(graph, value), places[value].strides);
}

bool Storages::fills(ValueId value) const {
  return places[value].storage != kNone && is_dense(value) &&
         byte_count(graph.type(value)) == storage_of(value).bytes;
}

bool Storages::needs_storage(ValueId value) const {
  const Node& producer = graph.producer(value);
  if (is_inlined_constant(graph, uses, value)) return false;
  if (uses.is_output[value] || producer.op == "input") return true;
  // A kernel of a single op may write results that nobody reads (statistics, scratch).
  if (!is_fusible(graph, producer)) return !uses.consumers[value].empty() || !op_of(producer).moves_parts;
  const int unit = unit_of_value(value);
  return std::any_of(uses.consumers[value].begin(), uses.consumers[value].end(),
                     [&](NodeId consumer) { return unit_of[consumer] != unit; });
}

void Storages::add(ValueId value) {
  Storage storage;
  storage.bytes = byte_count(graph.type(value));
  // Inputs are copied in before the first unit runs.
  storage.first = graph.producer(value).op == "input" ? 0 : unit_of_value(value);
  storage.last = storage.first;
  all.push_back(storage);
  share(value, {static_cast<int>(all.size()) - 1, 0, row_major_strides(shape_of(graph, value))});
}

void Storages::share(ValueId value, const Place& place) {
  Storage& storage = all[place.storage];
  storage.values.push_back(value);
  const bool is_output = uses.is_output[value];
  storage.is_shown = storage.is_shown || is_output || graph.producer(value).op == "input";
  storage.last = std::max(storage.last, is_output ? static_cast<int>(units.size()) : unit_of_value(value));
  for (NodeId consumer : uses.consumers[value]) storage.last = std::max(storage.last, last_look(consumer));
  places[value] = place;
}

void Storages::place_results(const Node& node) {
  const OpDef& op = op_of(node);
  if (op.is_view) {
    const ValueId from = node.operands[0], to = node.results[0];
    // The parts of a split are only where their views can be as well.
    share(to, {places[from].storage, places[from].offset,
               *reshaped_strides(shape_of(graph, from), places[from].strides, shape_of(graph, to))});
    return;
  }
  if (op.moves_parts) {
    const Parts parts = parts_of(graph, node);
    if (!parts.gathers) {
      for (const Part& part : parts.parts) {
        if (!needs_storage(part.value)) continue;
        const Place inside = place_of(parts, part);
        if (is_row_major(shape_of(graph, part.value), inside.strides) ||
            consumers_accept(part.value, inside.strides))
          share(part.value, inside);
        else
          add(part.value);
      }
      return;
    }
  }
  for (ValueId result : node.results)
    if (needs_storage(result)) add(result);
}

bool Storages::consumers_accept(ValueId value, const std::vector<int64_t>& strides) const {
  if (uses.is_output[value]) return false;
  for (NodeId n : uses.consumers[value]) {
    const Node& node = graph.nodes[n];
    if (op_of(node).is_view) {
      const ValueId view = node.results[0];
      auto viewed = reshaped_strides(shape_of(graph, value), strides, shape_of(graph, view));
      if (!viewed || !consumers_accept(view, *viewed)) return false;
    } else if (!accepts_strides(graph, node, value, strides)) {
      return false;
    }
  }
  return true;
}

Place Storages::place_of(const Parts& parts, const Part& part) const {
  Place place = places[parts.whole];
  place.offset += part.begin * place.strides[parts.axis] * size_of(graph.type(parts.whole).dtype);
  return place;
}

void Storages::gather(const Node& concat) {
  const Parts parts = parts_of(graph, concat);
  if (places[parts.whole].storage == kNone) return;
  for (const Part& part : parts.parts) move_into(part.value, place_of(parts, part));
}

bool Storages::move_into(ValueId part, const Place& target) {
  const int from = places[part].storage;
  if (from == kNone || from == target.storage || !fills(part) || all[from].is_shown) return false;
  const std::vector<int64_t> shape = shape_of(graph, part);
  const bool is_dense = is_row_major(shape, target.strides);
  std::vector<std::vector<int64_t>> strides;
  for (ValueId value : all[from].values) {
    const Node& producer = graph.producer(value);
    if (producer.op == "read") return false;
    if (is_dense) {
      strides.push_back(places[value].strides);
      continue;
    }
    if (!fills(value)) return false;
    auto moved = reshaped_strides(shape, target.strides, shape_of(graph, value));
    if (!moved || !consumers_accept(value, *moved)) return false;
    if (!op_of(producer).is_view && !accepts_strides(graph, producer, value, *moved)) return false;
    strides.push_back(std::move(*moved));
  }
  Storage moved = std::exchange(all[from], {});
  for (size_t i = 0; i < moved.values.size(); ++i)
    places[moved.values[i]] = {target.storage, target.offset + places[moved.values[i]].offset, strides[i]};
  Storage& to = all[target.storage];
  to.first = std::min(to.first, moved.first);
  to.last = std::max(to.last, moved.last);
  to.values.insert(to.values.end(), moved.values.begin(), moved.values.end());
  return true;
}

bool Storages::overlap(const Place& a, ValueId a_value, const Place& b, ValueId b_value) const {
  // Runs of bytes without gaps, the smallest distance between two, and where the first begins.
  struct Runs {
    int64_t bytes = 0, distance = 0;
  };
  auto runs = [&](const Place& place, ValueId value) {
    const std::vector<int64_t> shape = shape_of(graph, value);
    const int64_t size = size_of(graph.type(value).dtype);
    Runs result{size, 0};
    for (size_t axis = shape.size(); axis-- > 0;) {
      if (shape[axis] == 1) continue;
      if (result.distance == 0 && place.strides[axis] * size == result.bytes)
        result.bytes *= shape[axis];
      else if (result.distance == 0 || place.strides[axis] * size < result.distance)
        result.distance = place.strides[axis] * size;
    }
    return result;
  };
  const Runs one = runs(a, a_value), other = runs(b, b_value);
  if (one.distance == 0 && other.distance == 0)
    return a.offset < b.offset + other.bytes && b.offset < a.offset + one.bytes;
  if (one.distance != other.distance) return true;
  // Columns of rows that are equally far apart.
  const int64_t from = a.offset % one.distance, to = b.offset % one.distance;
  if (from + one.bytes > one.distance || to + other.bytes > one.distance) return true;
  return from < to + other.bytes && to < from + one.bytes;
}

bool Storages::is_last_use(int unit, ValueId value) const {
  for (ValueId other : storage_of(value).values) {
    if (!overlap(places[value], value, places[other], other)) continue;
    if (unit_of_value(other) > unit) return false;
    for (NodeId consumer : uses.consumers[other])
      if (last_look(consumer) > unit) return false;
  }
  return true;
}

bool Storages::is_free_before(int unit, ValueId value) const {
  for (ValueId other : storage_of(value).values)
    if (unit_of_value(other) < unit && overlap(places[value], value, places[other], other)) return false;
  return true;
}

bool Storages::may_take_place(int unit, ValueId operand, ValueId result) const {
  if (graph.type(operand) != graph.type(result)) return false;
  const Unit& nodes = units[unit];
  const int storage = places[operand].storage;
  if (nodes.size() == 1) {
    const Node& node = graph.nodes[nodes[0]];
    const OpDef& op = op_of(node);
    // Its kernel takes an operand's place by intent.
    const bool changes = operand_changed_in_place(node) != kNone;
    const std::optional<size_t> position = changes ? op.in_place_operand : op.overwrites_operand;
    if (position && result == node.results[0]) {
      for (size_t i = 0; i < node.operands.size(); ++i)
        if (node.operands[i] != kNone && (places[node.operands[i]].storage == storage) != (i == *position))
          return false;
      return node.operands[*position] == operand;
    }
  }
  // A row kernel of one op stores its row after all reductions, looking at the same elements again.
  const bool is_row = nodes.size() == 1 && is_fusible(graph, graph.nodes[nodes[0]]) &&
                      fusion_of(graph, graph.nodes[nodes[0]]) == Fusion::kRow &&
                      graph.nodes[nodes[0]].results.size() == 1;
  for (NodeId n : nodes) {
    const Node& node = graph.nodes[n];
    if (!is_fusible(graph, node) || (fusion_of(graph, node) != Fusion::kPointwise && !is_row)) return false;
    for (ValueId read : node.operands)
      if (read != kNone && places[read].storage == storage &&
          (graph.type(read) != graph.type(result) || places[read] != places[operand]))
        return false;
    for (ValueId written : node.results)
      if (graph.type(written).shape != graph.type(result).shape) return false;
  }
  return true;
}

}  // namespace kumi
