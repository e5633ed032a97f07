#include "graph/passes/quantize_comm.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "graph/op.h"
#include "graph/passes/keep_sent.h"
#include "graph/passes/overlap.h"
#include "graph/passes/shard.h"
#include "graph/quantized.h"
#include "graph/rebuild.h"
#include "graph/rewrite.h"

namespace kumi {
namespace {

bool holds_matrices(const State& flat) {
  return !flat.tensors.empty() && flat.tensors[0].shape.size() >= 2;
}

Shape rows_of(int64_t rows, int64_t size) {
  return {Dim(rows), Dim(size)};
}

// ---------------------------------------------------------------------------------------------- weights

// A replica whose pieces travel quantized.
struct QuantizedReplica {
  std::string name;
  DType dtype = DType::F32;
  int64_t piece = 0;  // elements that one rank quantizes by itself
  int64_t rows = 0;   // such pieces in the rank's storage
  // Where it is kept quantized: the states of codes, scales, ...; empty if it is dequantized at once.
  std::vector<State> parts;
};

class Weights : Rebuild {
 public:
  Weights(const Graph& old, const std::map<std::string, QuantizedReplica>& replicas,
          const std::map<std::string, std::string>& replica_of, const QuantizationScheme& scheme)
      : Rebuild(old), replicas_(replicas), replica_of_(replica_of), scheme_(scheme) {}

  Graph run() {
    for (const Node& node : old_.nodes) {
      stand_for(node);
      if (node.op == "read" && stored(string_attribute(node.attributes, "state")) != nullptr) continue;
      if (node.op == "all_gather")
        gather(node);
      else if (node.op == "write" && stored(string_attribute(node.attributes, "state")) != nullptr)
        write(node);
      else
        copy(node);
    }
    for (const Output& output : old_.outputs) new_.outputs.push_back({output.name, translated(output.value)});
    return remove_dead_nodes(new_);
  }

 private:
  // The replica of this name, if it is kept quantized.
  const QuantizedReplica* stored(const std::string& state) const {
    auto found = replicas_.find(state);
    return found == replicas_.end() || found->second.parts.empty() ? nullptr : &found->second;
  }

  std::string state_read(ValueId value) const {
    const Node& node = old_.producer(value);
    return node.op == "read" ? string_attribute(node.attributes, "state") : "";
  }

  // The trained weights that a value is, perhaps rounded, and their replica.
  const QuantizedReplica* made_of_weights(ValueId value, ValueId* weights) const {
    const Node& node = old_.producer(value);
    *weights = node.op == "cast" ? node.operands[0] : value;
    auto replica = replica_of_.find(state_read(*weights));
    return replica == replica_of_.end() ? nullptr : &replicas_.at(replica->second);
  }

  std::vector<ValueId> quantize(ValueId weights, const QuantizedReplica& replica) {
    return quantized(builder_, builder_.reshape(translated(weights), {Dim(replica.piece)}), scheme_);
  }

  ValueId dequantize(std::vector<ValueId> parts, const QuantizedReplica& replica, int64_t rows) {
    for (ValueId& part : parts) {
      const int64_t size = element_count(new_.type(part).shape).number() / rows;
      part = builder_.reshape(part, rows_of(rows, size));
    }
    const ValueId value = dequantized(builder_, parts, scheme_, replica.piece, replica.dtype);
    return builder_.reshape(value, {Dim(rows * replica.piece)});
  }

  void gather(const Node& node) {
    struct Part {
      const QuantizedReplica* replica = nullptr;  // null: travels as it is
      bool is_new = false;                        // quantized here
      size_t begin = 0, count = 0;                // among the new operands
    };
    std::vector<Part> parts;
    std::vector<ValueId> operands;
    for (ValueId operand : node.operands) {
      Part part;
      part.begin = operands.size();
      ValueId weights = kNone;
      std::vector<ValueId> values = {translated(operand)};
      if (const QuantizedReplica* replica = made_of_weights(operand, &weights)) {
        part.replica = replica;
        part.is_new = true;
        values = quantize(weights, *replica);
      } else if (const QuantizedReplica* kept = stored(state_read(operand))) {
        part.replica = kept;
        values.clear();
        for (const State& state : kept->parts) values.push_back(builder_.read(state));
      }
      part.count = values.size();
      operands.insert(operands.end(), values.begin(), values.end());
      parts.push_back(part);
    }
    const int64_t ranks = int_attribute(node.attributes, "ranks");
    std::vector<ValueId> gathered = operands;
    if (ranks > 1) {
      gathered = builder_.build("all_gather", operands, node.attributes, "gathered");
      new_.nodes.back().recomputed = node.recomputed;
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto first = gathered.begin() + static_cast<std::ptrdiff_t>(parts[i].begin);
      const std::vector<ValueId> values(first, first + static_cast<std::ptrdiff_t>(parts[i].count));
      const QuantizedReplica* replica = parts[i].replica;
      if (replica == nullptr) {
        new_id_[node.results[i]] = values[0];
      } else if (parts[i].is_new && !replica->parts.empty()) {
        quantized_values_[node.results[i]] = values;  // goes into the replica as it is
      } else {
        const int64_t rows = parts[i].is_new ? ranks : ranks * replica->rows;
        new_id_[node.results[i]] = dequantize(values, *replica, rows);
      }
    }
  }

  void write(const Node& node) {
    const QuantizedReplica& replica = *stored(string_attribute(node.attributes, "state"));
    std::vector<ValueId> values;
    if (auto found = quantized_values_.find(node.operands[0]); found != quantized_values_.end()) {
      values = found->second;
    } else {
      ValueId weights = kNone;
      (void)made_of_weights(node.operands[0], &weights);
      values = quantize(weights, replica);
    }
    for (size_t i = 0; i < values.size(); ++i)
      builder_.build("write", {values[i]}, {{"state", replica.parts[i].name}});
  }

  const std::map<std::string, QuantizedReplica>& replicas_;
  const std::map<std::string, std::string>& replica_of_;  // by state of trained weights
  const QuantizationScheme scheme_;
  std::map<ValueId, std::vector<ValueId>> quantized_values_;  // by old value
};

// The states in place of a replica that is kept quantized.
std::vector<State> states_of_parts(const State& replica, const QuantizedReplica& quantized_replica,
                                   const QuantizationScheme& scheme) {
  static constexpr const char* kNames[] = {".codes", ".scales", ".scale_scales", ".scale_mean"};
  // What a piece is quantized to is told by the ops themselves.
  Graph graph;
  GraphBuilder builder(graph);
  const ValueId piece = builder.constant(0, {Dim(quantized_replica.piece)});
  std::vector<State> states;
  for (ValueId part : quantized(builder, piece, scheme)) {
    State state = replica;
    state.name += kNames[states.size()];
    state.type = graph.type(part);
    state.type.shape[0] = state.type.shape[0] * Dim(quantized_replica.rows);
    states.push_back(std::move(state));
  }
  return states;
}

void quantize_weights(Module* module, const PlanOptions& options) {
  const QuantizationScheme scheme = quantization_scheme(options.quantized_weights);
  std::map<std::string, QuantizedReplica> replicas;
  std::map<std::string, std::string> replica_of;
  std::vector<State> states;
  for (const State& state : module->states) {
    const State* flat = nullptr;
    for (const State& other : module->states)
      if (state.kind == State::kReplica && replica_name(other.name) == state.name) flat = &other;
    if (flat == nullptr || !holds_matrices(*flat)) {
      states.push_back(state);
      continue;
    }
    QuantizedReplica replica{state.name, state.type.dtype, flat->type.shape[0].number(), 0, {}};
    replica.rows = state.type.shape[0].number() / replica.piece;
    if (!state.cut.empty()) replica.parts = states_of_parts(state, replica, scheme);
    if (replica.parts.empty()) states.push_back(state);
    states.insert(states.end(), replica.parts.begin(), replica.parts.end());
    replica_of[flat->name] = state.name;
    replicas[state.name] = std::move(replica);
  }
  for (const char* name : {"gradient", "replicate"})
    if (Graph* graph = module->find_graph(name)) *graph = Weights(*graph, replicas, replica_of, scheme).run();
  module->states = std::move(states);
}

// -------------------------------------------------------------------------------------------- gradients

class Gradients : Rebuild {
 public:
  Gradients(const Graph& old, const Module& module, const QuantizationScheme& scheme)
      : Rebuild(old), module_(module), mesh_(module.mesh), scheme_(scheme) {}

  Graph run() {
    for (const Node& node : old_.nodes)
      if (node.op == "reduce_scatter" || node.op == "all_reduce")
        reduce(node);
      else
        copy(node);
    for (const Output& output : old_.outputs) new_.outputs.push_back({output.name, translated(output.value)});
    return remove_dead_nodes(new_);
  }

 private:
  // Gradients of matrices. Vectors and scalars are not worth it, and their values matter more.
  bool travels_quantized(const Node& node, size_t i) const {
    std::string state = accumulator(node.operands[i], node.results[i]);
    if (!state.starts_with(kAccumulatorPrefix)) return false;
    const State* flat = module_.find_state(state.substr(kAccumulatorPrefix.size()));
    return flat != nullptr && holds_matrices(*flat);
  }

  // The state that the sum is of, or goes to.
  std::string accumulator(ValueId operand, ValueId result) const {
    const Node& producer = old_.producer(operand);
    if (producer.op == "read") return string_attribute(producer.attributes, "state");
    for (std::vector<ValueId> values = {result}; !values.empty();) {
      const ValueId value = values.back();
      values.pop_back();
      for (NodeId n : uses_.consumers[value]) {
        const Node& node = old_.nodes[n];
        if (node.op == "write") return string_attribute(node.attributes, "state");
        for (size_t i = 0; i < node.results.size(); ++i)
          if (!is_collective(node) || node.operands[i] == value) values.push_back(node.results[i]);
      }
    }
    return "";
  }

  void reduce(const Node& node) {
    stand_for(node);
    std::vector<ValueId> plain;
    std::vector<size_t> plain_index;
    const MeshGroup group = *parse_mesh_group(string_attribute(node.attributes, "group"));
    for (size_t i = 0; i < node.operands.size(); ++i)
      if (!travels_quantized(node, i)) {
        plain.push_back(translated(node.operands[i]));
        plain_index.push_back(i);
      }
    const std::vector<ValueId> reduced = collective(builder_, mesh_, node.op, group, plain, "reduced");
    for (size_t i = 0; i < reduced.size(); ++i) new_id_[node.results[plain_index[i]]] = reduced[i];
    for (size_t i = 0; i < node.operands.size(); ++i) {
      if (!travels_quantized(node, i)) continue;
      ValueId value = sum_of_pieces(translated(node.operands[i]), group);
      if (node.op == "all_reduce") value = collective(builder_, mesh_, "all_gather", group, {value})[0];
      new_id_[node.results[i]] = value;
    }
  }

  // This rank's piece of the sum over the group.
  ValueId sum_of_pieces(ValueId value, MeshGroup group) {
    const int64_t size = new_.type(value).shape[0].number();
    if (group != MeshGroup::kWorld || mesh_.nodes == 1 || mesh_.local == 1)
      return exchange(builder_.reshape(value, rows_of(mesh_.size(group), size / mesh_.size(group))), group);
    // Pieces go by nodes, then by ranks of the node; the ranks of the node exchange first.
    const int64_t piece = size / mesh_.ranks();
    value = builder_.reshape(value, {Dim(mesh_.nodes), Dim(mesh_.local), Dim(piece)});
    value = exchange(value, MeshGroup::kNode);
    return exchange(builder_.reshape(value, rows_of(mesh_.nodes, piece)), MeshGroup::kCrossNode);
  }

  // [ranks, n] or, of pieces of several nodes, [nodes, ranks, n]: the sum of what all members of the group
  // have for this rank, [n] or [nodes * n].
  ValueId exchange(ValueId value, MeshGroup group) {
    const Shape shape = new_.type(value).shape;
    const int64_t size = shape.back().number();
    std::vector<ValueId> parts = quantized(builder_, value, scheme_);
    const bool by_node = shape.size() == 3;
    if (by_node)
      for (ValueId& part : parts) part = builder_.call("transpose", {part}, {{"axes", Shape{1, 0, 2}}});
    parts = collective(builder_, mesh_, "all_to_all", group, parts, "exchanged");
    value = dequantized(builder_, parts, scheme_, size, DType::F32);
    value = builder_.call("sum", {value}, {{"axes", Shape{0}}, {"keep_axes", false}});
    return builder_.reshape(value, {Dim(by_node ? shape[0].number() * size : size)});
  }

  static constexpr std::string_view kAccumulatorPrefix = "gradient.";

  const Module& module_;
  const Mesh& mesh_;
  const QuantizationScheme scheme_;
};

// Where nothing is updated, replicas stay as they are, and what they are made of is not needed.
void leave_out_trained_weights(Module* module) {
  std::erase_if(module->graphs, [](const Graph& graph) { return graph.name == "replicate"; });
  std::set<std::string> read;
  for (const Graph& graph : module->graphs)
    for (const Node& node : graph.nodes)
      if (node.op == "read") read.insert(string_attribute(node.attributes, "state"));
  std::erase_if(module->states, [&](const State& state) { return read.count(state.name) == 0; });
}

}  // namespace

Module quantize_comm(Module module, const PlanOptions& options) {
  if (!is_sharded(options)) return module;
  if (options.quantized_weights != "none") {
    if (options.sharding == ShardingMode::kDdp)
      throw Error(concat("weights in ", options.quantized_weights, ", but ddp gathers no weights"))
          .hint("choose a sharding of zero1 to zero3_local, or quantize.weights=none");
    quantize_weights(&module, options);
  }
  if (options.quantized_gradients != "none") {
    const QuantizationScheme scheme = quantization_scheme(options.quantized_gradients);
    const Module before = module;
    for (Graph& graph : module.graphs) graph = Gradients(graph, before, scheme).run();
  }
  keep_sent(&module);
  if (options.goal == Goal::kGradient) leave_out_trained_weights(&module);
  return module;
}

}  // namespace kumi
