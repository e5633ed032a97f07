// Appends nodes to a graph: checks the op's schema, applies its shape rule, names the results.
// Used by the language's elaborator, gradient rules and passes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kumi {

class GraphBuilder {
 public:
  // Appends to `graph`, which must outlive the builder.
  explicit GraphBuilder(Graph& graph);

  // Appends a node and returns its results. Throws Error as infer_types does, with scope and
  // location of the builder attached.
  std::vector<ValueId> build(const std::string& op, const std::vector<ValueId>& operands,
                             Attributes attributes = {}, const std::string& name = "");
  // For ops with one result.
  ValueId call(const std::string& op, const std::vector<ValueId>& operands, Attributes attributes = {},
               const std::string& name = "");

  // The value of a state, named after it.
  ValueId read(const std::string& state, const Type& type);
  ValueId read(const State& state) { return read(state.name, state.type); }

  // Copies a node of another graph, its operands already translated; the results' names are kept if free.
  std::vector<ValueId> copy(const Graph& from, const Node& node, const std::vector<ValueId>& operands);

  // Shorthands for the arithmetic of gradient rules and the optimizer. Scalars broadcast, and numbers
  // take the element type of what they meet.
  ValueId add(ValueId a, ValueId b) { return call("add", {a, b}); }
  ValueId subtract(ValueId a, ValueId b) { return call("sub", {a, b}); }
  ValueId multiply(ValueId a, ValueId b) { return call("mul", {a, b}); }
  ValueId divide(ValueId a, ValueId b) { return call("div", {a, b}); }
  ValueId constant(double value, Shape shape = {}, DType dtype = DType::F32);
  ValueId multiply(ValueId a, double factor) {
    return multiply(a, constant(factor, {}, graph_.type(a).dtype));
  }
  ValueId add(ValueId a, double term) { return add(a, constant(term, {}, graph_.type(a).dtype)); }
  ValueId reshape(ValueId a, const Shape& shape) { return call("reshape", {a}, {{"shape", shape}}); }
  // Sums a gradient down to the shape that was broadcast: the adjoint of broadcasting.
  ValueId sum_to(ValueId a, const Shape& shape);

  const Graph& graph() const { return graph_; }
  Graph& mutable_graph() { return graph_; }

  // Given to every node built from now on.
  std::string scope;
  SourceLocation location;

 private:
  // `name_of(i)` is the name wished for result i.
  template <typename NameOf>
  std::vector<ValueId> append(const std::string& op, const std::vector<ValueId>& operands,
                              Attributes attributes, NameOf name_of);

  Graph& graph_;
  NameTable names_;
};

}  // namespace kumi
