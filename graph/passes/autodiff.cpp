#include "graph/passes/autodiff.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "graph/names.h"
#include "graph/op.h"
#include "graph/rewrite.h"

namespace kumi {
namespace {

ValueId find_loss(const Graph& graph, const PlanOptions& options) {
  std::vector<std::string> names;
  for (const Output& output : graph.outputs) {
    names.push_back(output.name);
    if (output.name != options.loss) continue;
    const Type& type = graph.type(output.value);
    if (type != Type{DType::F32, {}})
      throw Error(concat("the output '", output.name, "' cannot be differentiated: it is ", display(type)))
          .at(graph.producer(output.value).location)
          .expected("f32[], one number, as cross_entropy or mean give it");
    return output.value;
  }
  throw Error(concat("the model has no output '", options.loss, "' to differentiate"))
      .expected(names.empty() ? "the model to have an output" : "one of its outputs: " + joined(names))
      .hint(did_you_mean(options.loss, names));
}

class Differentiation {
 public:
  Differentiation(const Module& module, Graph* graph)
      : module_(module),
        graph_(*graph),
        builder_(*graph),
        forward_nodes_(static_cast<NodeId>(graph->nodes.size())),
        active_(depends_on_weight(module, *graph)),
        gradients_(graph->values.size(), kNone) {}

  void run(ValueId loss, bool weighted) {
    if (active_[loss]) {
      const Node producer = graph_.producer(loss);
      builder_.location = producer.location;
      gradients_[loss] = weighted ? loss_weight(builder_, producer, loss) : builder_.constant(1.0);
      for (NodeId n = forward_nodes_; n-- > 0;) differentiate(n);
    }
    add_outputs();
    name_gradients();
  }

 private:
  void differentiate(NodeId id) {
    Node node = graph_.nodes[id];  // a copy: the rules append to the graph
    const OpDef& op = op_of(node);
    GradientContext context{builder_, node, {}, {}};
    bool reached = false;
    for (ValueId result : node.results) {
      context.result_gradients.push_back(gradients_[result]);
      reached |= gradients_[result] != kNone;
    }
    bool any_needed = false;
    for (ValueId operand : node.operands) {
      context.needed.push_back(operand != kNone && active_[operand]);
      any_needed |= context.needed.back();
    }
    if (!reached || !any_needed) return;
    builder_.scope = node.scope;
    builder_.location = node.location;
    try {
      if (!op.gradient)
        throw Error(concat("'", node.op, "' has no gradient, but stands between a weight and the loss"))
            .hint("leave it out of the loss, or compute its operands without weights");
      collect(node, context.needed, op.gradient(context));
    } catch (Error& error) {
      if (!error.location().known()) error.at(node.location);
      error.node(graph_.values[node.results[0]].name).while_doing(concat("differentiating '", node.op, "'"));
      throw;
    }
  }

  // Adds what a rule returned to the gradients of the node's operands.
  void collect(const Node& node, const std::vector<bool>& needed, const std::vector<ValueId>& gradients) {
    if (gradients.size() != node.operands.size())
      throw Error(concat("the gradient rule of '", node.op, "' gives ", gradients.size(), " gradients for ",
                         node.operands.size(), " operands"));
    for (size_t i = 0; i < gradients.size(); ++i) {
      ValueId operand = node.operands[i], gradient = gradients[i];
      if (gradient == kNone || !needed[i]) continue;
      if (graph_.type(gradient) != graph_.type(operand))
        throw Error(concat("the gradient rule of '", node.op, "' gives ", display(graph_.type(gradient)),
                           " for operand ", i))
            .expected(concat(display(graph_.type(operand)), ", the operand's type"));
      parts_.push_back({operand, gradient});
      ValueId& sum = gradients_[operand];
      sum = sum == kNone ? gradient : builder_.add(sum, gradient);
    }
  }

  void add_outputs() {
    std::unordered_map<std::string, std::vector<NodeId>> reads;
    for (NodeId n = 0; n < forward_nodes_; ++n)
      if (graph_.nodes[n].op == "read")
        reads[string_attribute(graph_.nodes[n].attributes, "state")].push_back(n);
    for (const State& state : module_.states) {
      if (state.kind != State::kWeight) continue;
      builder_.scope.clear();
      ValueId gradient = kNone;
      for (NodeId n : reads[state.name]) {
        const Node& node = graph_.nodes[n];
        ValueId part = gradients_[node.results[0]];
        if (part == kNone) continue;
        builder_.scope = node.scope;
        builder_.location = node.location;
        gradient = gradient == kNone ? part : builder_.add(gradient, part);
      }
      if (gradient == kNone) {
        builder_.location = state.location;
        gradient = builder_.constant(0.0, state.type.shape, state.type.dtype);
      }
      weight_gradients_.emplace_back(state.name, gradient);
      graph_.outputs.push_back({"grad." + state.name, gradient});
    }
  }

  // Weights' gradients first, then those of values from the loss on, then the parts of sums.
  void name_gradients() {
    std::vector<bool> named(graph_.values.size(), false);
    std::fill(named.begin(), named.begin() + static_cast<std::ptrdiff_t>(gradients_.size()), true);
    NameTable names(graph_);
    auto name = [&](ValueId gradient, const std::string& wish) {
      if (gradient == kNone || named[gradient]) return;
      named[gradient] = true;
      graph_.values[gradient].name = names.unique("grad." + wish);
    };
    for (const auto& [weight, gradient] : weight_gradients_) name(gradient, to_value_name(weight));
    for (size_t v = gradients_.size(); v-- > 0;) name(gradients_[v], graph_.values[v].name);
    for (const Part& part : parts_) name(part.gradient, graph_.values[part.of].name);
  }

  struct Part {
    ValueId of;
    ValueId gradient;
  };

  const Module& module_;
  Graph& graph_;
  GraphBuilder builder_;
  const NodeId forward_nodes_;
  const std::vector<bool> active_;  // by forward value
  std::vector<ValueId> gradients_;  // by forward value, the sum so far
  std::vector<Part> parts_;
  std::vector<std::pair<std::string, ValueId>> weight_gradients_;
};

}  // namespace

ValueId loss_weight(GraphBuilder& builder, const Node& producer, ValueId loss) {
  const OpDef& op = op_of(producer);
  const bool weighted = op.loss_weight && builder.graph().values[loss].result_index == 0;
  return weighted ? op.loss_weight(builder, producer) : builder.constant(1.0);
}

std::vector<bool> depends_on_weight(const Module& module, const Graph& graph) {
  std::unordered_set<std::string> weights;
  for (const State& state : module.states)
    if (state.kind == State::kWeight) weights.insert(state.name);
  std::vector<bool> depends(graph.values.size(), false);
  for (const Node& node : graph.nodes) {
    bool any = node.op == "read" && weights.count(string_attribute(node.attributes, "state")) != 0;
    for (ValueId operand : node.operands) any |= operand != kNone && depends[operand];
    for (ValueId result : node.results) depends[result] = any && is_floating(graph.type(result).dtype);
  }
  return depends;
}

Module autodiff(Module module, const PlanOptions& options) {
  if (options.goal != Goal::kGradient && options.goal != Goal::kTrain) return module;
  Graph* forward = module.find_graph("forward");
  if (forward == nullptr)
    throw Error(concat("the module '", module.name, "' has no graph 'forward' to differentiate"));
  ValueId loss = find_loss(*forward, options);
  Graph gradient = *forward;
  gradient.name = "gradient";
  Differentiation(module, &gradient).run(loss, options.goal == Goal::kTrain && options.sees_part_of_step());
  *forward = remove_dead_nodes(merge_equal_nodes(gradient));
  return module;
}

}  // namespace kumi
