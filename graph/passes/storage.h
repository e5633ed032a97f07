// Which values of a graph share memory: the first half of the memory pass.
//
// A storage is a piece of memory that one value fills and others see: the reshape of a value, the parts
// of a split, and what a concat gathers, computed in its place. Storages are found without knowing where
// in memory they will be; a place in one is a byte offset with strides.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"
#include "graph/parts.h"
#include "graph/reorder.h"
#include "graph/uses.h"

namespace kumi {

// Where a value lies within its storage.
struct Place {
  int storage = kNone;  // index into Storages::all
  int64_t offset = 0;   // bytes
  std::vector<int64_t> strides;

  bool operator==(const Place&) const = default;
};

struct Storage {
  int64_t bytes = 0;
  int first = 0;  // the unit that computes the first of its values
  int last = 0;   // the last unit that looks at one of them
  std::vector<ValueId> values;
  bool is_shown = false;  // an input or an output: others look at it between runs
};

class Storages {
 public:
  Storages(const Graph& graph, const Uses& uses, const std::vector<Unit>& units);

  const Graph& graph;
  const Uses& uses;
  const std::vector<Unit>& units;
  std::vector<int> unit_of;   // by node
  std::vector<Storage> all;   // those merged into others have no values
  std::vector<Place> places;  // by value; no storage for what stays in registers

  const Storage& storage_of(ValueId value) const { return all[places[value].storage]; }
  // Row-major without gaps?
  bool is_dense(ValueId value) const;
  // Dense, and all of its storage?
  bool fills(ValueId value) const;
  // The unit until which a node looks at its operands: its own, but for a collective on a stream of its own
  // that which waits for it.
  int last_look(NodeId node) const { return done_at_[node]; }
  int unit_of_value(ValueId value) const { return unit_of[graph.values[value].producer]; }

  // The unit computes `result` element by element, looking at `operand` at the same elements only, so
  // that the one may take the place of the other.
  bool may_take_place(int unit, ValueId operand, ValueId result) const;
  // Nothing looks at the memory of the value after the unit.
  bool is_last_use(int unit, ValueId value) const;
  // Nothing else is in the memory of the value before the unit, which computes it.
  bool is_free_before(int unit, ValueId value) const;
  // Lets a value that fills its storage be computed at the target, with all that shares the storage.
  // False if something that reads or writes it cannot do so there.
  bool move_into(ValueId value, const Place& target);

 private:
  std::vector<int> done_at_;  // by node

  void find_ends();
  bool overlap(const Place& a, ValueId a_value, const Place& b, ValueId b_value) const;
  bool needs_storage(ValueId value) const;
  void add(ValueId value);
  void share(ValueId value, const Place& place);
  void place_results(const Node& node);
  bool consumers_accept(ValueId value, const std::vector<int64_t>& strides) const;
  // Where a part is inside its whole.
  Place place_of(const Parts& parts, const Part& part) const;
  void gather(const Node& concat);
};

}  // namespace kumi
