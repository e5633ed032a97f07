#include "graph/passes/infer.h"

#include <algorithm>

#include "graph/op.h"
#include "graph/rewrite.h"

namespace kumi {
namespace {

using Sizes = std::map<std::string, int64_t>;

std::vector<std::string> size_names(const Module& module) {
  std::vector<std::string> names;
  for (const auto& size : module.sizes) names.push_back(size.first);
  return names;
}

void check_names(const Module& module, const PlanOptions& options) {
  std::vector<std::string> names = size_names(module);
  for (const auto& entry : options.sizes)
    if (std::find(names.begin(), names.end(), entry.first) == names.end())
      throw Error(concat("the model '", module.name, "' has no size '", entry.first, "'"))
          .expected(concat("one of its free sizes: ", joined(names, "none")))
          .hint(did_you_mean(entry.first, names));
}

Sizes bind_sizes(const Module& module, const PlanOptions& options) {
  check_names(module, options);
  Sizes sizes;
  for (const auto& [name, default_value] : module.sizes) {
    auto given = options.sizes.find(name);
    if (given != options.sizes.end())
      sizes[name] = given->second;
    else if (default_value)
      sizes[name] = default_value->substitute(sizes).number();
    else
      throw Error(concat("the size '", name, "' has no value"))
          .hint(concat("give it one with --set model.", name,
                       "=8, by the data, or as a default in the model: size ", name, " = 8"));
    if (sizes[name] < 1) throw Error(concat("the size '", name, "' is ", sizes[name])).expected("1 or more");
  }
  return sizes;
}

void substitute(const Sizes& sizes, Shape* shape) {
  for (Dim& dim : *shape)
    if (!dim.is_number()) dim = dim.substitute(sizes);
}

void substitute(const Sizes& sizes, Attributes* attributes) {
  for (auto& entry : *attributes) {
    if (Dim* dim = std::get_if<Dim>(&entry.second)) *dim = dim->substitute(sizes);
    if (Shape* shape = std::get_if<Shape>(&entry.second)) substitute(sizes, shape);
  }
}

void infer_graph(const Sizes& sizes, Graph* graph) {
  for (Value& value : graph->values) substitute(sizes, &value.type.shape);
  for (Node& node : graph->nodes) {
    substitute(sizes, &node.attributes);
    std::vector<const Type*> operands;
    for (ValueId operand : node.operands)
      operands.push_back(operand == kNone ? nullptr : &graph->values[operand].type);
    try {
      std::vector<Type> types = infer_types(op_of(node), operands, &node.attributes);
      for (size_t i = 0; i < types.size(); ++i) {
        const Value& value = graph->values[node.results[i]];
        if (types[i] != value.type)
          throw Error(concat("'", value.name, "' is declared as ", display(value.type)))
              .expected(concat(display(types[i]), ", what '", node.op, "' gives"));
        for (const Dim& dim : types[i].shape)
          if (dim.number() < 1)
            throw Error(concat("the size ", dim.display(), " of '", value.name, "': ", display(types[i])))
                .expected("a size of 1 or more");
      }
    } catch (Error& error) {
      if (!error.location().known() && node.location.known()) error.at(node.location);
      if (!node.results.empty()) error.node(graph->values[node.results[0]].name);
      throw;
    }
  }
}

}  // namespace

Module infer(Module module, const PlanOptions& options) {
  Sizes sizes = bind_sizes(module, options);
  for (State& state : module.states) substitute(sizes, &state.type.shape);
  for (Graph& graph : module.graphs) {
    infer_graph(sizes, &graph);
    graph = remove_dead_nodes(merge_equal_nodes(graph));
  }
  for (auto& [name, value] : module.sizes) value = Dim(sizes[name]);
  return module;
}

void check_bound_sizes(const Module& module, const PlanOptions& options) {
  check_names(module, options);
  for (const auto& [name, value] : module.sizes) {
    auto given = options.sizes.find(name);
    if (given == options.sizes.end() || !value || *value == Dim(given->second)) continue;
    throw Error(
        concat("the size '", name, "' is ", value->display(), " in this plan already, not ", given->second))
        .hint("start from the model's source, or from a dump taken before the pass infer");
  }
}

}  // namespace kumi
