#include "graph/passes/optimizer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <unordered_map>
#include <unordered_set>

#include "graph/names.h"
#include "graph/op.h"
#include "graph/parts.h"
#include "graph/passes/autodiff.h"
#include "graph/passes/shard.h"
#include "graph/passes/weight_order.h"
#include "graph/rewrite.h"
#include "graph/uses.h"

namespace kumi {
namespace {

constexpr double kClipEpsilon = 1e-6;  // as in PyTorch's clip_grad_norm_
const char* const kScope = "optimizer";

void require(bool condition, const char* name, double value, const char* expected) {
  if (!condition) throw Error(concat("optimizer: ", name, " is ", value)).expected(expected);
}

void check(const OptimizerOptions& o) {
  require(std::isfinite(o.learning_rate) && o.learning_rate >= 0, "learning_rate", o.learning_rate,
          "0 or more");
  require(o.warmup_steps >= 0, "warmup_steps", static_cast<double>(o.warmup_steps), "0 or more");
  require(o.decay_steps == 0 || o.decay_steps > o.warmup_steps, "decay_steps",
          static_cast<double>(o.decay_steps), "more than warmup_steps, or 0 for a constant rate");
  require(o.final_fraction >= 0 && o.final_fraction <= 1, "final_fraction", o.final_fraction, "0 to 1");
  require(o.beta1 >= 0 && o.beta1 < 1, "beta1", o.beta1, "0 to 1, 1 excluded");
  require(o.beta2 >= 0 && o.beta2 < 1, "beta2", o.beta2, "0 to 1, 1 excluded");
  require(std::isfinite(o.eps) && o.eps > 0, "eps", o.eps, "more than 0");
  require(std::isfinite(o.weight_decay) && o.weight_decay >= 0, "weight_decay", o.weight_decay, "0 or more");
  require(std::isfinite(o.clip) && o.clip >= 0, "clip", o.clip, "0 or more");
  require(o.accumulation >= 1, "accumulation", static_cast<double>(o.accumulation), "1 or more");
}

struct Weight {
  std::string name;
  Type type;
  Type moment_type;    // f32
  Type gradient_type;  // of the accumulator, f32: what the graph "gradient" gives
  bool decays;
  std::string scope;  // where the model reads it
  SourceLocation location;
};

class Training {
 public:
  Training(Module* module, const PlanOptions& options) : module_(*module), options_(options) {
    check(options.optimizer);
  }

  void run() {
    Graph* gradient = module_.find_graph("gradient");
    if (gradient == nullptr) throw Error("there is no graph 'gradient'").hint("run the pass autodiff first");
    collect_weights(*gradient);
    accumulate(gradient);
    Graph update;
    update.name = "update";
    build_update(&update);
    module_.graphs.push_back(std::move(update));
  }

 private:
  bool accumulates() const { return options_.optimizer.accumulation > 1; }

  void collect_weights(const Graph& gradient) {
    std::unordered_map<std::string, const Node*> reads;
    for (const Node& node : gradient.nodes)
      if (node.op == "read") reads.emplace(string_attribute(node.attributes, "state"), &node);
    auto scope_of = [&](const std::string& state) {
      auto read = reads.find(replica_name(state));
      if (read == reads.end()) read = reads.find(state);
      return read == reads.end() ? "" : read->second->scope;
    };
    std::vector<std::vector<std::string>> groups = weights_read_together(module_, gradient);
    if (!options_.is_enabled("sweep")) {
      groups.clear();
      for (const State& state : module_.states)
        if (state.kind == State::kWeight) groups.push_back({state.name});
    }
    for (const std::vector<std::string>& group : groups)
      for (const std::string& name : group) {
        const State& state = *module_.find_state(name);
        const ValueId output = gradient.find_output("grad." + name);
        if (output == kNone) throw Error(concat("the graph 'gradient' has no output 'grad.", name, "'"));
        weights_.push_back({name, state.type, Type{DType::F32, state.type.shape},
                            Type{DType::F32, gradient.type(output).shape}, decays(state), scope_of(name),
                            state.location});
      }
    if (weights_.empty()) throw Error(concat("the model '", module_.name, "' has no weights to train"));
  }

  // Not biases, not norms. A flat state holds either.
  static bool decays(const State& weight) {
    return (weight.tensors.empty() ? weight.type.rank() : static_cast<int>(weight.tensors[0].shape.size())) >=
           2;
  }

  // The weights that one kernel updates: all of one element type and decay, or one.
  std::vector<std::vector<size_t>> sweeps() const {
    std::map<std::pair<DType, bool>, std::vector<size_t>> classes;
    std::vector<std::vector<size_t>> result;
    for (size_t i = 0; i < weights_.size(); ++i)
      if (options_.is_enabled("sweep"))
        classes[{weights_[i].type.dtype, weights_[i].decays}].push_back(i);
      else
        result.push_back({i});
    for (auto& entry : classes) result.push_back(std::move(entry.second));
    return result;
  }

  // The states one after the other, as one axis; a single one as it is.
  ValueId read_flat(GraphBuilder& builder, const std::vector<size_t>& sweep, const std::string& prefix) {
    std::vector<ValueId> parts;
    for (size_t i : sweep) {
      const Weight& weight = weights_[i];
      set_place(builder, weight);
      parts.push_back(builder.read(prefix + weight.name, prefix.empty() ? weight.type : weight.moment_type));
    }
    set_place(builder);
    return flat(builder, parts);
  }

  static ValueId flat(GraphBuilder& builder, std::vector<ValueId> parts) {
    if (parts.size() > 1)
      for (ValueId& part : parts)
        part = builder.reshape(part, {element_count(builder.graph().type(part).shape)});
    return parts.size() == 1 ? parts[0] : builder.call("concat", parts, {{"axis", Dim(0)}});
  }

  // And back into the states.
  void write_flat(GraphBuilder& builder, const std::vector<size_t>& sweep, const std::string& prefix,
                  ValueId value) {
    if (sweep.size() == 1) {
      write(builder, prefix + weights_[sweep[0]].name, value);
      return;
    }
    Shape sizes;
    for (size_t i : sweep) sizes.push_back(element_count(weights_[i].type.shape));
    std::vector<ValueId> parts = builder.build("split", {value}, {{"axis", Dim(0)}, {"sizes", sizes}});
    for (size_t p = 0; p < parts.size(); ++p) {
      const Weight& weight = weights_[sweep[p]];
      set_place(builder, weight);
      write(builder, prefix + weight.name, builder.reshape(parts[p], weight.type.shape));
    }
    set_place(builder);
  }

  static void set_place(GraphBuilder& builder, const Weight& weight) {
    builder.scope = weight.scope;
    builder.location = weight.location;
  }
  static void set_place(GraphBuilder& builder) {
    builder.scope = kScope;
    builder.location = {};
  }

  void add_state(const std::string& name, State::Kind kind, const Type& type,
                 const SourceLocation& location) {
    module_.states.push_back({name, kind, type, Initializer{}, location});
  }

  // A moment lies as its weight does, also if that is flat and cut.
  void add_moment(const std::string& prefix, const std::string& weight) {
    State moment = *module_.find_state(weight);
    moment.name = prefix + moment.name;
    moment.kind = State::kOptimizer;
    moment.type.dtype = DType::F32;
    moment.initializer = {};
    for (FlatTensor& tensor : moment.tensors) tensor = {prefix + tensor.name, tensor.shape, {}};
    module_.states.push_back(std::move(moment));
  }

  static void write(GraphBuilder& builder, const std::string& state, ValueId value) {
    builder.build("write", {value}, {{"state", state}});
  }

  // ------------------------------------------------------------------------- the graph "gradient"

  void accumulate(Graph* graph) {
    NodeId first = static_cast<NodeId>(graph->nodes.size());
    GraphBuilder builder(*graph);
    ValueId loss = graph->find_output(options_.loss);
    if (loss == kNone) throw Error(concat("the graph 'gradient' has no output '", options_.loss, "'"));
    ValueId weight = kNone;  // of this part of the step
    if (options_.sees_part_of_step()) {
      Node producer = graph->producer(loss);
      builder.scope = producer.scope;
      builder.location = producer.location;
      weight = loss_weight(builder, producer, loss);
      add_to(builder, "loss.weight", weight, kNone);
    }
    add_to(builder, "loss.sum", loss, weight);
    Accumulation accumulation(*graph);
    for (const Weight& w : weights_) {
      ValueId gradient = graph->find_output("grad." + w.name);
      accumulation.weight_of.emplace(gradient, &w);
    }
    for (const Weight& w : weights_) {
      ValueId gradient = graph->find_output("grad." + w.name);
      set_place(builder, w);
      if (accumulates() && add_in_product(builder, accumulation, gradient)) continue;
      if (graph->type(gradient).dtype != DType::F32)
        gradient = builder.call("cast", {gradient}, {{"dtype", DType::F32}});
      add_to(builder, "gradient." + w.name, gradient, kNone);
    }
    keep_outputs(graph);
    hoist_appended_nodes(graph, first);
    *graph = remove_dead_nodes(*graph);
  }

  // What is known of the gradients that are products, before nodes are appended.
  struct Accumulation {
    explicit Accumulation(const Graph& graph) : uses(graph) {}

    Uses uses;
    std::unordered_map<ValueId, const Weight*> weight_of;  // by gradient
    std::unordered_set<NodeId> done;                       // products that add to accumulators
  };

  // A product whose sums are the gradient of a weight, or of several one below the other, adds them to the
  // accumulators itself. False if the gradient is something else.
  bool add_in_product(GraphBuilder& builder, Accumulation& accumulation, ValueId gradient) {
    const Graph& graph = builder.graph();
    const Node first = graph.producer(gradient);
    if (op_of(first).moves_parts && parts_of(graph, first).gathers)
      return add_in_products(builder, accumulation, gradient);
    const bool split = op_of(first).moves_parts && first.operands.size() == 1;
    const ValueId whole = split ? first.operands[0] : gradient;
    const NodeId product = graph.values[whole].producer;
    if (accumulation.done.count(product) != 0) return true;
    const Node node = graph.nodes[product];
    if (!can_add(graph, whole)) return false;
    if (split && accumulation.uses.consumers[whole].size() != 1) return false;
    std::vector<const Weight*> weights;
    for (ValueId part : split ? first.results : std::vector<ValueId>{whole}) {
      auto weight = accumulation.weight_of.find(part);
      if (weight == accumulation.weight_of.end() || !accumulation.uses.consumers[part].empty()) return false;
      weights.push_back(weight->second);
    }
    std::vector<ValueId> sums;
    for (const Weight* weight : weights) {
      const std::string state = "gradient." + weight->name;
      add_state(state, State::kAccumulator, weight->gradient_type, weight->location);
      set_place(builder, *weight);
      sums.push_back(builder.read(state, weight->gradient_type));
    }
    builder.scope = node.scope;
    builder.location = node.location;
    const ValueId before =
        split ? builder.call("concat", sums, {{"axis", Dim(int_attribute(first.attributes, "axis"))}})
              : sums[0];
    const ValueId after =
        builder.call("matmul", {node.operands[0], node.operands[1], kNone, before}, node.attributes, "sum");
    std::vector<ValueId> parts = {after};
    if (split) parts = builder.build("split", {after}, first.attributes, "sum");
    for (size_t i = 0; i < parts.size(); ++i) {
      set_place(builder, *weights[i]);
      write(builder, "gradient." + weights[i]->name, parts[i]);
    }
    accumulation.done.insert(product);
    return true;
  }

  // Is the value what a product could add to?
  static bool can_add(const Graph& graph, ValueId value) {
    const Node& node = graph.producer(value);
    return node.op == "matmul" && graph.type(value).dtype == DType::F32 &&
           std::all_of(node.operands.begin() + 2, node.operands.end(), [](ValueId v) { return v == kNone; });
  }

  // The same for the gradient of one weight of which several products are the parts.
  bool add_in_products(GraphBuilder& builder, Accumulation& accumulation, ValueId gradient) {
    const Graph& graph = builder.graph();
    const Node concat = graph.producer(gradient);
    const auto weight = accumulation.weight_of.find(gradient);
    if (weight == accumulation.weight_of.end() || !accumulation.uses.consumers[gradient].empty())
      return false;
    Shape sizes;
    const int axis = parts_of(graph, concat).axis;
    for (ValueId part : concat.operands) {
      if (!can_add(graph, part) || accumulation.uses.consumers[part].size() != 1) return false;
      sizes.push_back(graph.type(part).shape[axis]);
    }
    const Weight& sum = *weight->second;
    const std::string state = "gradient." + sum.name;
    add_state(state, State::kAccumulator, sum.gradient_type, sum.location);
    std::vector<ValueId> parts = builder.build("split", {builder.read(state, sum.gradient_type)},
                                               {{"axis", Dim(axis)}, {"sizes", sizes}});
    for (size_t i = 0; i < parts.size(); ++i) {
      const Node product = graph.producer(concat.operands[i]);
      builder.scope = product.scope;
      builder.location = product.location;
      parts[i] = builder.call("matmul", {product.operands[0], product.operands[1], kNone, parts[i]},
                              product.attributes, "sum");
    }
    set_place(builder, sum);
    write(builder, state, builder.call("concat", parts, {{"axis", Dim(axis)}}, "sum"));
    return true;
  }

  // Writes value (times weight) into the accumulator, added to what earlier micro-batches of the step left.
  void add_to(GraphBuilder& builder, const std::string& state, ValueId value, ValueId weight) {
    Type type = builder.graph().type(value);
    add_state(state, State::kAccumulator, type, builder.location);
    if (weight != kNone) value = builder.multiply(value, weight);
    if (accumulates()) value = builder.add(builder.read(state, type), value);
    write(builder, state, value);
  }

  void keep_outputs(Graph* graph) const {
    std::vector<Output> kept;
    for (const Output& output : graph->outputs) {
      bool is_gradient = output.name.starts_with("grad.") && is_weight(output.name.substr(5));
      if (options_.keep_outputs && !is_gradient) kept.push_back(output);
    }
    graph->outputs = std::move(kept);
  }

  bool is_weight(const std::string& name) const {
    const State* state = module_.find_state(name);
    return state != nullptr && state->kind == State::kWeight;
  }

  // --------------------------------------------------------------------------- the graph "update"

  void build_update(Graph* graph) {
    const OptimizerOptions& o = options_.optimizer;
    {
      GraphBuilder builder(*graph);
      builder.scope = kScope;
      std::vector<ValueId> gradients = step_gradients(builder);  // by sweep
      std::vector<ValueId> sums = {builder.read("loss.sum", Type{DType::F32, {}})};
      if (options_.sees_part_of_step()) sums.push_back(builder.read("loss.weight", Type{DType::F32, {}}));
      sums.push_back(sum_of_squares(builder, gradients));
      sum_over_ranks(builder, &sums);
      ValueId loss = sums[0];
      ValueId inverse = kNone;  // 1 / the step's total weight
      if (options_.sees_part_of_step()) {
        // All labels may be ignored: then every sum is 0, and so is the step.
        ValueId total = builder.call("maximum", {sums[1], builder.constant(1.0)});
        inverse = builder.call("div", {builder.constant(1.0), total}, {}, "inverse_weight");
        loss = builder.call("mul", {loss, inverse}, {}, "loss");
      }
      ValueId norm = gradient_norm(builder, sums.back(), inverse);
      ValueId scale = gradient_scale(builder, norm, inverse);
      const ValueId applies = o.skips_non_finite ? both_finite(builder, loss, norm) : kNone;
      ValueId step = next_step(builder, applies);
      ValueId lr = learning_rate(builder, step);
      ValueId correction1 = bias_correction(builder, step, o.beta1, "correction1");
      ValueId correction2 = bias_correction(builder, step, o.beta2, "correction2");
      for (size_t i = 0; i < gradients.size(); ++i)
        update_weights(builder, sweeps()[i], gradients[i], {scale, lr, correction1, correction2}, applies);
      graph->outputs = {{"loss", loss}, {"grad_norm", norm}, {"lr", lr}};
    }
    *graph = remove_dead_nodes(merge_equal_nodes(*graph));
    if (accumulates()) clear_accumulators(graph);
  }

  // Of the whole step, as far as this rank updates the weights, by sweep.
  std::vector<ValueId> step_gradients(GraphBuilder& builder) {
    std::vector<ValueId> values;
    for (const Weight& weight : weights_) {
      set_place(builder, weight);
      values.push_back(builder.read("gradient." + weight.name, weight.gradient_type));
    }
    set_place(builder);
    for (const GradientReduction& how : step_reductions(options_))
      values = collective(builder, options_.mesh, how.op, how.group, values, "gradients");
    std::vector<ValueId> gradients;
    for (const std::vector<size_t>& sweep : sweeps()) {
      std::vector<ValueId> parts;
      for (size_t i : sweep) parts.push_back(values[i]);
      gradients.push_back(flat(builder, parts));
    }
    return gradients;
  }

  // Over all weights of this rank, added in pairs, so that rounding does not grow with their number.
  ValueId sum_of_squares(GraphBuilder& builder, const std::vector<ValueId>& gradients) {
    std::vector<ValueId> sums;
    for (ValueId gradient : gradients) sums.push_back(builder.build("sum_of_squares", {gradient})[0]);
    while (sums.size() > 1) {
      std::vector<ValueId> pairs;
      for (size_t i = 0; i + 1 < sums.size(); i += 2) pairs.push_back(builder.add(sums[i], sums[i + 1]));
      if (sums.size() % 2 == 1) pairs.push_back(sums.back());
      sums = std::move(pairs);
    }
    return sums[0];
  }

  // Loss, its weight and the squares of the gradient, which every rank has all of already if its weights are.
  void sum_over_ranks(GraphBuilder& builder, std::vector<ValueId>* sums) {
    if (!is_sharded(options_)) return;
    const bool has_all = options_.sharding == ShardingMode::kDdp;
    const ValueId squares = sums->back();
    if (has_all) sums->pop_back();
    *sums = collective(builder, options_.mesh, "all_reduce", MeshGroup::kWorld, *sums, "sums");
    if (has_all) sums->push_back(squares);
  }

  ValueId gradient_norm(GraphBuilder& builder, ValueId squares, ValueId inverse) {
    ValueId norm = builder.call("sqrt", {squares}, {}, inverse == kNone ? "grad_norm" : "grad_norm.sum");
    return inverse == kNone ? norm : builder.call("mul", {norm, inverse}, {}, "grad_norm");
  }

  ValueId gradient_scale(GraphBuilder& builder, ValueId norm, ValueId inverse) {
    double clip = options_.optimizer.clip;
    if (clip == 0) return inverse == kNone ? builder.constant(1.0) : inverse;
    ValueId ratio = builder.divide(builder.constant(clip), builder.add(norm, kClipEpsilon));
    ValueId scale = builder.call("minimum", {ratio, builder.constant(1.0)}, {}, "scale");
    return inverse == kNone ? scale : builder.call("mul", {scale, inverse}, {}, "scale");
  }

  // NaN and infinity less themselves are NaN. Both operands are sums over all ranks, the same bits on each.
  static ValueId both_finite(GraphBuilder& builder, ValueId loss, ValueId norm) {
    const ValueId nothing = builder.add(builder.subtract(loss, loss), builder.subtract(norm, norm));
    return builder.call("equal", {nothing, builder.constant(0.0)}, {}, "is_finite");
  }

  // Counts the step, if it applies, and returns its number, from 1.
  ValueId next_step(GraphBuilder& builder, ValueId applies) {
    Type type{DType::I32, {}};
    add_state("step", State::kOptimizer, type, {});
    ValueId done = builder.read("step", type);
    ValueId step = builder.call("add", {done, builder.constant(1, {}, DType::I32)}, {}, "step.next");
    write(builder, "step", applies == kNone ? step : builder.call("select", {applies, step, done}));
    return step;
  }

  // Linear warm-up times cosine decay. (1 + cos(pi p)) / 2 is written sin^2(pi/2 (1 - p)), which
  // loses no digits at the end; f32 counts steps exactly up to 16 million.
  ValueId learning_rate(GraphBuilder& builder, ValueId step) {
    const OptimizerOptions& o = options_.optimizer;
    if (o.warmup_steps == 0 && o.decay_steps == 0) return builder.constant(o.learning_rate);
    ValueId s = builder.call("cast", {step}, {{"dtype", DType::F32}}, "step.f32");
    ValueId factor = kNone;
    if (o.warmup_steps > 0) {
      ValueId share = builder.divide(s, builder.constant(static_cast<double>(o.warmup_steps)));
      factor = builder.call("minimum", {share, builder.constant(1.0)}, {}, "warmup");
    }
    if (o.decay_steps > 0) {
      ValueId left = builder.subtract(builder.constant(static_cast<double>(o.decay_steps)), s);
      left = builder.divide(left, builder.constant(static_cast<double>(o.decay_steps - o.warmup_steps)));
      left = builder.call("minimum", {left, builder.constant(1.0)});
      left = builder.call("maximum", {left, builder.constant(0.0)});
      ValueId sine = builder.call("sin", {builder.multiply(left, std::numbers::pi / 2)});
      ValueId cosine = builder.multiply(sine, sine);
      ValueId decay = builder.add(builder.multiply(cosine, 1 - o.final_fraction), o.final_fraction);
      factor = factor == kNone ? decay : builder.multiply(factor, decay);
    }
    return builder.call("mul", {factor, builder.constant(o.learning_rate)}, {}, "lr");
  }

  // 1 - beta^step as 1 - exp(step log beta). In f64: for beta near 1 the difference loses in f32 all
  // but three digits in the first steps.
  ValueId bias_correction(GraphBuilder& builder, ValueId step, double beta, const std::string& name) {
    if (beta == 0) return builder.constant(1.0);
    ValueId s = builder.call("cast", {step}, {{"dtype", DType::F64}}, "step.f64");
    ValueId power =
        builder.call("exp", {builder.multiply(s, builder.constant(std::log(beta), {}, DType::F64))});
    ValueId correction = builder.subtract(builder.constant(1.0, {}, DType::F64), power);
    return builder.call("cast", {correction}, {{"dtype", DType::F32}}, name);
  }

  void update_weights(GraphBuilder& builder, const std::vector<size_t>& sweep, ValueId gradient,
                      const std::vector<ValueId>& scalars, ValueId applies) {
    const OptimizerOptions& o = options_.optimizer;
    for (const char* moment : {"adamw.m.", "adamw.v."})
      for (size_t i : sweep) add_moment(moment, weights_[i].name);
    std::vector<ValueId> operands = {read_flat(builder, sweep, ""), gradient,
                                     read_flat(builder, sweep, "adamw.m."),
                                     read_flat(builder, sweep, "adamw.v.")};
    operands.insert(operands.end(), scalars.begin(), scalars.end());
    if (applies != kNone) operands.push_back(applies);
    const Weight& first = weights_[sweep[0]];
    if (sweep.size() == 1) set_place(builder, first);
    std::vector<ValueId> results =
        builder.build("adamw", operands,
                      {{"beta1", o.beta1},
                       {"beta2", o.beta2},
                       {"eps", o.eps},
                       {"weight_decay", first.decays ? o.weight_decay : 0.0}},
                      sweep.size() == 1 ? to_value_name("new." + first.name) : "new.weights");
    write_flat(builder, sweep, "", results[0]);
    write_flat(builder, sweep, "adamw.m.", results[1]);
    write_flat(builder, sweep, "adamw.v.", results[2]);
  }

  // One constant for each accumulator, so that each can be filled in place.
  void clear_accumulators(Graph* graph) const {
    GraphBuilder builder(*graph);
    for (const State& state : module_.states) {
      if (state.kind != State::kAccumulator) continue;
      builder.location = state.location;
      write(builder, state.name, builder.constant(0.0, state.type.shape, state.type.dtype));
    }
  }

  Module& module_;
  const PlanOptions& options_;
  std::vector<Weight> weights_;
};

}  // namespace

Module optimizer(Module module, const PlanOptions& options) {
  if (options.goal == Goal::kTrain) Training(&module, options).run();
  return module;
}

}  // namespace kumi
