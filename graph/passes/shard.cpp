#include "graph/passes/shard.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <unordered_map>

#include "graph/names.h"
#include "graph/op.h"
#include "graph/parts.h"
#include "graph/passes/weight_order.h"
#include "graph/rebuild.h"
#include "graph/rewrite.h"

namespace kumi {
namespace {

// Elements of which pieces are multiples: whole blocks of quantization, whole cache lines.
constexpr int64_t kPieceMultiple = 64;

// Weights that are gathered and whose gradients are reduced together: matrices, which decay and may be
// quantized, and vectors.
struct Section {
  std::string state;
  // Weights that the model reads as one value stand together.
  std::vector<std::vector<std::string>> runs;
  int64_t elements = 0;  // without padding
  int64_t padded = 0;
};

struct Unit {
  std::string scope;
  std::array<Section, 2> sections;
};

int64_t elements_of(const State& state) {
  return element_count(state.type.shape).number();
}

// Of the weights that are gathered or replicated; ddp's are those that are trained.
DType compute_type_of(const PlanOptions& options) {
  const bool is_low = options.precision == Precision::kBF16 && options.sharding != ShardingMode::kDdp;
  return is_low ? DType::BF16 : DType::F32;
}

// "model.layers.layers.7.mlp" -> "model.layers.layers.7"; "" outside of layers.
std::string layer_of(const std::string& scope) {
  std::string number;
  const std::string folded = fold_layer(scope, &number);
  if (number.empty()) return "";
  const size_t star = folded.find('*');
  return folded.substr(0, star) + number;
}

class Units {
 public:
  Units(const Module& module, const Graph& graph, const Mesh& mesh) {
    std::unordered_map<std::string, std::pair<NodeId, std::string>> first_use;  // node and scope, by weight
    for (size_t n = graph.nodes.size(); n-- > 0;)
      for (ValueId operand : graph.nodes[n].operands)
        if (operand != kNone && graph.producer(operand).op == "read")
          first_use[string_attribute(graph.producer(operand).attributes, "state")] = {
              static_cast<NodeId>(n), graph.producer(operand).scope};
    std::vector<std::vector<std::string>> groups = weights_read_together(module, graph);
    auto use = [&](const std::vector<std::string>& group) { return first_use[group[0]].first; };
    std::stable_sort(groups.begin(), groups.end(),
                     [&](const auto& a, const auto& b) { return use(a) < use(b); });
    std::string last_layer;
    std::map<std::string, size_t> unit_of_layer;
    for (std::vector<std::string>& group : groups) {
      const std::string layer = layer_of(first_use[group[0]].second);
      const bool is_new =
          all.empty() || (layer.empty() ? !last_layer.empty() : unit_of_layer.count(layer) == 0);
      if (is_new) {
        if (!layer.empty()) unit_of_layer[layer] = all.size();
        all.emplace_back().scope = layer.empty() ? stretch_name(group[0]) : layer;
      }
      Unit& unit = layer.empty() ? all.back() : all[unit_of_layer.at(layer)];
      last_layer = layer;
      const bool is_matrix = module.find_state(group[0])->type.rank() >= 2;
      Section& section = unit.sections[is_matrix ? 0 : 1];
      for (const std::string& name : group) section.elements += elements_of(*module.find_state(name));
      section.runs.push_back(std::move(group));
    }
    for (Unit& unit : all)
      for (size_t s = 0; s < 2; ++s) {
        Section& section = unit.sections[s];
        const int64_t multiple = mesh.ranks() * kPieceMultiple;
        section.padded = (section.elements + multiple - 1) / multiple * multiple;
        section.state = concat("flat.", unit.scope, s == 0 ? ".matrices" : ".vectors");
      }
  }

  std::vector<Unit> all;

 private:
  // Of weights outside of layers: after the first of them.
  static std::string stretch_name(const std::string& weight) {
    const size_t dot = weight.rfind('.');
    return dot == std::string::npos ? weight : weight.substr(0, dot);
  }
};

class Gradient : Rebuild {
 public:
  Gradient(const Module& module, const Graph& old, const Units& units, const PlanOptions& options)
      : Rebuild(old), module_(module), units_(units.all), options_(options), views_(old.values.size()) {
    gathers_ = options.sharding == ShardingMode::kZero3 || options.sharding == ShardingMode::kZero3Local;
    compute_type_ = compute_type_of(options);
    for (size_t u = 0; u < units_.size(); ++u)
      for (size_t s = 0; s < 2; ++s) {
        const auto& runs = units_[u].sections[s].runs;
        for (size_t r = 0; r < runs.size(); ++r)
          for (size_t m = 0; m < runs[r].size(); ++m)
            place_of_[runs[r][m]] = {static_cast<int>(u), static_cast<int>(s), r, m, 1};
      }
    present_.resize(units_.size());
    find_views();
    find_uses();
    find_gradients();
  }

  Graph run() {
    for (size_t n = 0; n < old_.nodes.size(); ++n) {
      node(static_cast<NodeId>(n));
      for (size_t u : finished_by_[n]) reduce(units_[u]);
    }
    for (const Output& output : old_.outputs) {
      if (output.name.starts_with("grad.") && place_of_.count(output.name.substr(5)) != 0) continue;
      new_.outputs.push_back({output.name, value_of(output.value)});
    }
    return remove_dead_nodes(new_);
  }

 private:
  // A value of the old graph that is one or several weights of a run, one after the other.
  struct View {
    int unit = kNone;
    int section = 0;
    size_t run = 0;
    size_t first = 0;
    size_t count = 0;
    bool is_low = false;  // cast to the type in which the model computes
  };
  // What is there of a unit: the flat values, and the run's parts of them.
  struct Present {
    std::array<std::vector<ValueId>, 2> runs;             // [elements]; empty: not there
    std::map<std::pair<ValueId, DType>, ValueId> shaped;  // by old value
  };

  const std::vector<std::string>& run_of(const View& view) const {
    return units_[view.unit].sections[view.section].runs[view.run];
  }

  // The values that are weights as they lie in memory: reads, concats of whole neighbours, and either of them
  // cast to the type in which the model computes.
  void find_views() {
    for (const Node& node : old_.nodes) {
      if (node.results.size() != 1) continue;
      View view;
      if (node.op == "read") {
        auto place = place_of_.find(string_attribute(node.attributes, "state"));
        if (place != place_of_.end()) view = place->second;
      } else if (node.op == "cast" && compute_type_ != DType::F32 &&
                 dtype_attribute(node.attributes, "dtype") == compute_type_) {
        view = views_[node.operands[0]];
        view.is_low = true;
      } else if (node.op == "concat") {
        view = joined_view(node);
      }
      views_[node.results[0]] = view;
    }
  }

  View joined_view(const Node& node) const {
    const Parts parts = parts_of(old_, node);
    if (!is_leading(old_.type(parts.whole).shape, parts.axis)) return {};
    View whole = views_[node.operands[0]];
    for (size_t i = 1; i < node.operands.size() && whole.unit != kNone; ++i) {
      const View& next = views_[node.operands[i]];
      if (next.unit != whole.unit || next.section != whole.section || next.run != whole.run ||
          next.is_low != whole.is_low || next.first != whole.first + whole.count)
        return {};
      whole.count += next.count;
    }
    return whole;
  }

  // Which unit's weights each node uses, so that it is known where a unit is used for the last time before
  // others are: there its weights are let go.
  void find_uses() {
    std::vector<std::pair<NodeId, int>> uses;
    for (size_t n = 0; n < old_.nodes.size(); ++n) {
      if (old_.nodes[n].results.size() == 1 && views_[old_.nodes[n].results[0]].unit != kNone) continue;
      for (ValueId operand : old_.nodes[n].operands)
        if (operand != kNone && views_[operand].unit != kNone)
          uses.emplace_back(static_cast<NodeId>(n), views_[operand].unit);
    }
    begins_anew_.resize(old_.nodes.size());
    std::vector<int> last_index(units_.size(), kNone);
    int index = 0;  // of the stretch of uses of one unit
    for (size_t i = 0; i < uses.size(); ++i) {
      if (i > 0 && uses[i].second != uses[i - 1].second) ++index;
      int& last = last_index[uses[i].second];
      if (last != kNone && last != index) begins_anew_[uses[i].first].push_back(uses[i].second);
      last = index;
    }
  }

  void find_gradients() {
    finished_by_.resize(old_.nodes.size());
    for (size_t u = 0; u < units_.size(); ++u) {
      NodeId last = 0;
      for (const Section& section : units_[u].sections)
        for (const auto& run : section.runs)
          for (const std::string& name : run) {
            const ValueId gradient = old_.find_output("grad." + name);
            if (gradient == kNone)
              throw Error(concat("the graph 'gradient' has no output 'grad.", name, "'"));
            last = std::max(last, old_.values[gradient].producer);
          }
      finished_by_[last].push_back(u);
    }
  }

  void node(NodeId n) {
    const Node& node = old_.nodes[n];
    if (gathers_)
      for (int unit : begins_anew_[n]) present_[unit] = {};
    if (node.results.size() == 1 && views_[node.results[0]].unit != kNone) return;
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands) operands.push_back(operand == kNone ? kNone : value_of(operand));
    record(node, builder_.copy(old_, node, operands));
  }

  // Of the new graph.
  ValueId value_of(ValueId old) {
    const View& view = views_[old];
    if (view.unit == kNone) return translated(old);
    Present& present = present_[view.unit];
    if (present.runs[0].empty() && present.runs[1].empty()) gather(view.unit);
    const DType wanted = view.is_low ? compute_type_ : DType::F32;
    auto [entry, is_new] = present.shaped.emplace(std::make_pair(old, wanted), kNone);
    if (!is_new) return entry->second;
    stand_for(old_.producer(old));
    ValueId value = present.runs[view.section][view.run];
    const std::vector<std::string>& run = run_of(view);
    if (view.count < run.size()) {
      Shape sizes;
      for (size_t m = 0; m < run.size(); ++m) sizes.push_back(elements_of(*module_.find_state(run[m])));
      std::vector<ValueId> parts = builder_.build("split", {value}, {{"axis", Dim(0)}, {"sizes", sizes}});
      std::vector<ValueId> wanted_parts(parts.begin() + static_cast<std::ptrdiff_t>(view.first),
                                        parts.begin() + static_cast<std::ptrdiff_t>(view.first + view.count));
      value = wanted_parts.size() == 1 ? wanted_parts[0]
                                       : builder_.call("concat", wanted_parts, {{"axis", Dim(0)}});
    }
    value = builder_.reshape(value, old_.type(old).shape);
    if (wanted != new_.type(value).dtype) value = builder_.call("cast", {value}, {{"dtype", wanted}});
    return entry->second = value;
  }

  void gather(int unit_index) {
    const Unit& unit = units_[unit_index];
    builder_.scope = unit.scope;
    builder_.location = {};
    std::vector<ValueId> flats;
    for (const Section& section : unit.sections)
      if (section.elements > 0) flats.push_back(read_flat(section));
    if (gathers_) {
      const MeshGroup group =
          options_.sharding == ShardingMode::kZero3 ? MeshGroup::kWorld : MeshGroup::kNode;
      // Of quantized weights also from a single rank: quantize_comm dequantizes them there.
      const bool is_quantized = options_.quantized_weights != "none";
      flats = collective(builder_, options_.mesh, "all_gather", group, flats, "gathered", is_quantized);
    }
    size_t next = 0;
    for (size_t s = 0; s < 2; ++s)
      if (unit.sections[s].elements > 0)
        present_[unit_index].runs[s] = split_runs(unit.sections[s], flats[next++]);
  }

  ValueId read_flat(const Section& section) {
    const State* state = module_.find_state(replica_name(section.state));
    if (state == nullptr) state = module_.find_state(section.state);
    return builder_.read(*state);
  }

  std::vector<ValueId> split_runs(const Section& section, ValueId flat) {
    Shape sizes;
    for (const auto& run : section.runs) {
      int64_t elements = 0;
      for (const std::string& name : run) elements += elements_of(*module_.find_state(name));
      sizes.push_back(elements);
    }
    if (section.padded > section.elements) sizes.push_back(section.padded - section.elements);
    if (sizes.size() == 1) return {flat};
    return builder_.build("split", {flat}, {{"axis", Dim(0)}, {"sizes", sizes}});
  }

  // The gradients of a unit, as flat as its weights.
  void reduce(const Unit& unit) {
    builder_.location = {};
    std::vector<ValueId> flats;
    std::vector<std::string> names;
    for (const Section& section : unit.sections) {
      if (section.elements == 0) continue;
      std::vector<ValueId> parts;
      for (const auto& run : section.runs)
        for (ValueId part : gradients_of(run)) parts.push_back(part);
      builder_.scope = unit.scope;
      if (section.padded > section.elements)
        parts.push_back(builder_.constant(0.0, {section.padded - section.elements}));
      flats.push_back(parts.size() == 1 ? parts[0]
                                        : builder_.call("concat", parts, {{"axis", Dim(0)}},
                                                        to_value_name("grad." + section.state)));
      names.push_back("grad." + section.state);
    }
    builder_.scope = unit.scope;
    for (const GradientReduction& how : micro_batch_reductions(options_))
      flats = collective(builder_, options_.mesh, how.op, how.group, flats, "reduced");
    for (size_t i = 0; i < flats.size(); ++i) new_.outputs.push_back({names[i], flats[i]});
  }

  // Of the weights of a run, f32 on one axis: where one product has computed them all, that.
  std::vector<ValueId> gradients_of(const std::vector<std::string>& run) {
    std::vector<ValueId> old;
    for (const std::string& name : run) old.push_back(old_.find_output("grad." + name));
    const Node& producer = old_.producer(old[0]);
    if (run.size() > 1 && op_of(producer).moves_parts && producer.results == old) {
      const Parts parts = parts_of(old_, producer);
      if (!parts.gathers && is_leading(old_.type(parts.whole).shape, parts.axis)) old = {parts.whole};
    }
    std::vector<ValueId> parts;
    for (ValueId gradient : old) {
      stand_for(old_.producer(gradient));
      ValueId value = value_of(gradient);
      const Type type = new_.type(value);
      if (type.dtype != DType::F32) value = builder_.call("cast", {value}, {{"dtype", DType::F32}});
      parts.push_back(builder_.reshape(value, {element_count(type.shape)}));
    }
    return parts;
  }

  const Module& module_;
  const std::vector<Unit>& units_;
  const PlanOptions& options_;
  bool gathers_ = false;
  DType compute_type_ = DType::F32;
  std::unordered_map<std::string, View> place_of_;  // by weight
  std::vector<View> views_;                         // by old value
  std::vector<std::vector<int>> begins_anew_;       // by node: units that are gathered once more
  std::vector<std::vector<size_t>> finished_by_;    // by node: units whose gradients are all known after it
  std::vector<Present> present_;                    // by unit
};

struct Cuts {
  std::vector<MeshGroup> trained;
  std::optional<std::vector<MeshGroup>> replica;  // nothing: the model reads the trained weights
};

Cuts cuts_of(const PlanOptions& options) {
  // In another form than the trained weights have.
  const bool is_low = options.precision == Precision::kBF16 || options.quantized_weights != "none";
  switch (options.sharding) {
    case ShardingMode::kDdp:
      return {{}, std::nullopt};
    case ShardingMode::kZero1:
    case ShardingMode::kZero2:
      return {{MeshGroup::kWorld}, std::vector<MeshGroup>{}};
    case ShardingMode::kZero3:
      if (is_low) return {{MeshGroup::kWorld}, std::vector<MeshGroup>{MeshGroup::kWorld}};
      return {{MeshGroup::kWorld}, std::nullopt};
    case ShardingMode::kZero3Local:
      if (is_low || options.mesh.nodes > 1)
        return {{MeshGroup::kNode, MeshGroup::kCrossNode}, std::vector<MeshGroup>{MeshGroup::kNode}};
      return {{MeshGroup::kNode, MeshGroup::kCrossNode}, std::nullopt};
  }
  return {};
}

State flat_state(const Module& module, const Section& section, const PlanOptions& options,
                 const std::vector<MeshGroup>& cut) {
  State state;
  state.name = section.state;
  state.kind = State::kWeight;
  state.cut = cut;
  for (const auto& run : section.runs)
    for (const std::string& name : run) {
      const State& weight = *module.find_state(name);
      if (weight.type.dtype != DType::F32)
        throw Error(concat("the weight ", quoted(name), " is ", display(weight.type)))
            .at(weight.location)
            .expected("f32: ranks that train together keep their weights in f32");
      state.tensors.push_back({name, weight.type.shape, weight.initializer});
      if (!state.location.known()) state.location = weight.location;
    }
  int64_t pieces = 1;
  for (MeshGroup group : cut) pieces *= options.mesh.size(group);
  state.type = {DType::F32, {section.padded / pieces}};
  return state;
}

// The group over which trained weights are gathered to make the replicas; nothing if each rank has what it
// needs.
std::optional<MeshGroup> replica_group(const PlanOptions& options) {
  switch (options.sharding) {
    case ShardingMode::kZero1:
    case ShardingMode::kZero2:
      return MeshGroup::kWorld;
    case ShardingMode::kZero3Local:
      return MeshGroup::kCrossNode;
    default:
      return std::nullopt;
  }
}

// Makes the replicas from the trained weights, unit by unit.
Graph replicate_graph(const Module& module, const Units& units, const PlanOptions& options) {
  Graph graph;
  graph.name = "replicate";
  GraphBuilder builder(graph);
  for (const Unit& unit : units.all) {
    builder.scope = unit.scope;
    std::vector<ValueId> values;
    std::vector<const State*> replicas;
    for (const Section& section : unit.sections) {
      const State* replica = module.find_state(replica_name(section.state));
      if (section.elements == 0 || replica == nullptr) continue;
      const State& trained = *module.find_state(section.state);
      builder.location = trained.location;
      ValueId value = builder.read(trained);
      if (replica->type.dtype != trained.type.dtype)
        value = builder.call("cast", {value}, {{"dtype", replica->type.dtype}});
      values.push_back(value);
      replicas.push_back(replica);
    }
    if (const std::optional<MeshGroup> group = replica_group(options))
      values = collective(builder, options.mesh, "all_gather", *group, values, "gathered");
    for (size_t i = 0; i < values.size(); ++i)
      builder.build("write", {values[i]}, {{"state", replicas[i]->name}});
  }
  return graph;
}

}  // namespace

bool is_sharded(const PlanOptions& options) {
  if (options.goal != Goal::kTrain && options.goal != Goal::kGradient) return false;
  return options.mesh.ranks() > 1 || options.quantized_weights != "none";
}

std::string replica_name(const std::string& flat_state) {
  return "replica." + flat_state;
}

std::vector<GradientReduction> micro_batch_reductions(const PlanOptions& options) {
  const bool accumulates = options.optimizer.accumulation > 1;
  switch (options.sharding) {
    case ShardingMode::kDdp:
      if (accumulates) return {};
      return {{"all_reduce", MeshGroup::kWorld}};
    case ShardingMode::kZero1:
      if (accumulates) return {};
      return {{"reduce_scatter", MeshGroup::kWorld}};
    case ShardingMode::kZero2:
    case ShardingMode::kZero3:
      return {{"reduce_scatter", MeshGroup::kWorld}};
    case ShardingMode::kZero3Local:
      if (accumulates) return {{"reduce_scatter", MeshGroup::kNode}};
      return {{"reduce_scatter", MeshGroup::kNode}, {"reduce_scatter", MeshGroup::kCrossNode}};
  }
  return {};
}

std::vector<GradientReduction> step_reductions(const PlanOptions& options) {
  if (!is_sharded(options) || options.optimizer.accumulation == 1) return {};
  switch (options.sharding) {
    case ShardingMode::kDdp:
      return {{"all_reduce", MeshGroup::kWorld}};
    case ShardingMode::kZero1:
      return {{"reduce_scatter", MeshGroup::kWorld}};
    case ShardingMode::kZero2:
    case ShardingMode::kZero3:
      return {};
    case ShardingMode::kZero3Local:
      return {{"reduce_scatter", MeshGroup::kCrossNode}};
  }
  return {};
}

std::vector<ValueId> collective(GraphBuilder& builder, const Mesh& mesh, const std::string& op,
                                MeshGroup group, const std::vector<ValueId>& values, const std::string& name,
                                bool even_alone) {
  const int64_t ranks = mesh.size(group);
  if ((ranks == 1 && !even_alone) || values.empty()) return values;
  return builder.build(op, values, {{"group", std::string(to_string(group))}, {"ranks", Dim(ranks)}}, name);
}

Module shard(Module module, const PlanOptions& options) {
  if (!is_sharded(options)) return module;
  Graph* gradient = module.find_graph("gradient");
  if (gradient == nullptr) throw Error("there is no graph 'gradient'").hint("run the pass autodiff first");
  module.mesh = options.mesh;
  const Units units(module, *gradient, options.mesh);
  const Cuts cuts = cuts_of(options);
  const DType compute_type = compute_type_of(options);

  Module sharded = module;
  std::erase_if(sharded.states, [](const State& state) { return state.kind == State::kWeight; });
  for (const Unit& unit : units.all)
    for (const Section& section : unit.sections) {
      if (section.elements == 0) continue;
      State state = flat_state(module, section, options, cuts.trained);
      if (cuts.replica) {
        State replica{replica_name(state.name), State::kReplica, {compute_type, {section.padded}}};
        replica.location = state.location;
        replica.cut = *cuts.replica;
        for (MeshGroup group : replica.cut)
          replica.type.shape[0] = replica.type.shape[0].number() / options.mesh.size(group);
        sharded.states.push_back(std::move(replica));
      }
      sharded.states.push_back(std::move(state));
    }
  // The new graph is built over the sizes of the old weights and the new flat states.
  for (const State& state : module.states)
    if (state.kind == State::kWeight) sharded.states.push_back(state);
  *sharded.find_graph("gradient") = Gradient(sharded, *gradient, units, options).run();
  std::erase_if(sharded.states,
                [](const State& state) { return state.kind == State::kWeight && state.tensors.empty(); });
  if (cuts.replica) sharded.graphs.push_back(replicate_graph(sharded, units, options));
  return sharded;
}

}  // namespace kumi
