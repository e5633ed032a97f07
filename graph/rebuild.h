// What passes share that write a graph anew, node by node: the old graph, the new one, and which new value
// stands for each old one. A pass derives from it, calls copy() for what stays as it is, and builds the rest.
#pragma once

#include <vector>

#include "graph/builder.h"
#include "graph/uses.h"

namespace kumi {

class Rebuild {
 protected:
  // `old` must outlive the object.
  explicit Rebuild(const Graph& old)
      : old_(old), uses_(old), builder_(new_), new_id_(old.values.size(), kNone) {
    new_.name = old.name;
  }

  // Of an operand; kNone of one left out.
  ValueId translated(ValueId value) const { return value == kNone ? kNone : new_id_[value]; }

  // What is built next stands for this node: its scope and source line.
  void stand_for(const Node& node) {
    builder_.scope = node.scope;
    builder_.location = node.location;
  }

  void record(const Node& node, const std::vector<ValueId>& results) {
    for (size_t i = 0; i < results.size(); ++i) new_id_[node.results[i]] = results[i];
  }

  // The node with its operands translated.
  void copy(const Node& node) {
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands) operands.push_back(translated(operand));
    record(node, builder_.copy(old_, node, operands));
  }

  const Graph& old_;
  const Uses uses_;  // of the old graph
  Graph new_;
  GraphBuilder builder_;         // of the new one
  std::vector<ValueId> new_id_;  // by old value; kNone: not built
};

}  // namespace kumi
