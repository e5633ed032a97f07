#include "graph/passes/decode.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "graph/builder.h"
#include "graph/logits_only.h"
#include "graph/op.h"
#include "graph/passes/token_axis.h"
#include "graph/rewrite.h"
#include "graph/uses.h"

namespace kumi {
namespace {

constexpr int kTokenAxis = 1;  // of the input tokens, [batch, seq]

// What is known of the whole text's graph, for both graphs that are made of it.
struct Text {
  const Graph& graph;
  Dim capacity;
  std::vector<int> axes;              // by value: that of the positions, or kNone
  std::vector<bool> is_needed_whole;  // by node: for every token of a chunk, since attention needs it
  std::map<NodeId, std::pair<std::string, std::string>> caches;  // of each attention: keys and values
};

ValueId find_tokens(const Graph& graph) {
  const std::vector<NodeId> inputs = graph.inputs();
  const Type* type = inputs.empty() ? nullptr : &graph.type(graph.nodes[inputs[0]].results[0]);
  if (inputs.size() != 1 || type->dtype != DType::I32 || type->rank() != 2)
    throw Error("the model's logits do not depend on an input 'tokens': i32[batch, seq]");
  return graph.nodes[inputs[0]].results[0];
}

std::vector<bool> find_needed_whole(const Graph& graph) {
  std::vector<bool> needed(graph.nodes.size(), false);
  for (size_t n = graph.nodes.size(); n-- > 0;) {
    if (graph.nodes[n].op == "attention") needed[n] = true;
    if (!needed[n]) continue;
    for (ValueId operand : graph.nodes[n].operands)
      if (operand != kNone) needed[graph.values[operand].producer] = true;
  }
  return needed;
}

// Of the keys or values of attention, of all positions.
Type cache_type(Type type) {
  type.shape[2] = Dim::named("capacity", type.shape[2].without_name());
  return type;
}

// One of the two graphs: the text's nodes anew, on `size` tokens.
class Piece {
 public:
  Piece(const Text& text, const std::string& name, const Dim& size, bool has_last)
      : text_(text), size_(size), values_(text.graph.values.size(), kNone), builder_(graph_) {
    graph_.name = name;
    tokens_ = input("tokens", DType::I32, piece_type(find_tokens(text.graph), size).shape);
    position_[true] = position_[false] = input("position", DType::I32, {});
    if (has_last) last_ = input("last", DType::I32, {});
  }

  Graph make() {
    for (size_t n = 0; n < text_.graph.nodes.size(); ++n) {
      const Node& node = text_.graph.nodes[n];
      builder_.scope = node.scope;
      builder_.location = node.location;
      add(static_cast<NodeId>(n), node);
    }
    const Output& logits = text_.graph.outputs.at(0);
    builder_.scope = "";
    graph_.outputs = {{logits.name, operand(logits.value, last_ == kNone)}};
    return remove_dead_nodes(merge_equal_nodes(graph_));
  }

 private:
  ValueId input(const std::string& name, DType dtype, const Shape& shape) {
    return builder_.call("input", {}, {{"name", name}, {"dtype", dtype}, {"shape", shape}}, name);
  }

  // Without `last` there is nothing to be left out.
  bool is_whole(NodeId n) const { return text_.is_needed_whole[n] || last_ == kNone; }
  Dim tokens_of(bool whole) const { return whole ? size_ : Dim(1); }

  // The type of a value of the text's graph when it has `count` tokens.
  Type piece_type(ValueId value, const Dim& count) const {
    Type type = text_.graph.type(value);
    if (text_.axes[value] == kNone) return type;
    Dim& dim = type.shape[text_.axes[value]];
    dim = dim.name().empty() ? count : Dim::named(dim.name(), count);
    return type;
  }

  ValueId pick(ValueId x, ValueId at, int axis, const Dim& size) {
    return builder_.call("dynamic_slice", {x, at}, {{"axis", Dim(axis)}, {"size", size}},
                         graph_.values[x].name);
  }

  // A value of the text's graph for all tokens of the piece, or for the last.
  ValueId operand(ValueId value, bool whole) {
    if (value == kNone || text_.axes[value] == kNone) return values_[value];
    if (whole || !is_whole(text_.graph.values[value].producer)) return values_[value];
    auto [found, is_new] = last_of_.emplace(value, kNone);
    if (is_new) found->second = pick(values_[value], last_, text_.axes[value], Dim(1));
    return found->second;
  }

  // Where the first of the tokens stands.
  ValueId position(bool whole) {
    ValueId& at = position_[whole];
    if (!whole && at == position_[true]) at = builder_.call("add", {at, last_}, {}, "position.last");
    return at;
  }

  // What is made for every position of the text without looking at it, for the tokens of this piece.
  ValueId rows_of(ValueId table, int axis, bool whole) {
    const Node& producer = text_.graph.producer(table);
    const int rank = text_.graph.type(table).rank();
    if (producer.op == "slice") {  // straight from what is sliced, so that the slice need not be made
      if (axis_attribute(producer.attributes, "axis", rank) == axis &&
          int_attribute(producer.attributes, "begin") == 0)
        return rows_of(producer.operands[0], axis, whole);
    }
    return pick(values_[table], position(whole), axis, tokens_of(whole));
  }

  void add(NodeId n, const Node& node) {
    const bool whole = is_whole(n);
    if (node.op == "input") {
      values_[node.results[0]] = tokens_;
    } else if (node.op == "attention") {
      add_attention(n, node);
    } else {
      const bool per_token = std::any_of(node.results.begin(), node.results.end(),
                                         [&](ValueId result) { return text_.axes[result] != kNone; });
      std::vector<ValueId> operands;
      for (size_t i = 0; i < node.operands.size(); ++i)
        operands.push_back(operand_of(node, i, whole && per_token, per_token));
      if (node.op == "rope" && per_token) operands = {operands[0], position(whole)};
      build(node, operands, per_token ? tokens_of(whole) : text_.capacity);
    }
  }

  ValueId operand_of(const Node& node, size_t i, bool whole, bool per_token) {
    const ValueId value = node.operands[i];
    if (value == kNone) return kNone;
    const bool is_table =
        per_token && text_.axes[value] == kNone && fusion_of(text_.graph, node) == Fusion::kPointwise;
    if (!is_table) return operand(value, whole);
    // Axes are counted from the end; those of size 1 are the same for every token.
    const ValueId result = node.results[0];
    const int axis = text_.axes[result] - text_.graph.type(result).rank() + text_.graph.type(value).rank();
    if (axis < 0 || text_.graph.type(value).shape[axis] == Dim(1)) return values_[value];
    return rows_of(value, axis, whole);
  }

  // The node with its sizes for `count` tokens.
  void build(const Node& node, const std::vector<ValueId>& operands, const Dim& count) {
    Attributes attributes = node.attributes;
    for (auto& [name, attribute] : attributes) {
      if (Shape* shape = std::get_if<Shape>(&attribute); shape != nullptr && name == "shape")
        *shape = piece_type(node.results[0], count).shape;
      if (node.op == "slice" && name == "end" && slices_tokens(node)) attribute = count;
    }
    std::vector<ValueId> results;
    try {
      results = builder_.build(node.op, operands, attributes,
                               node.results.empty() ? "" : text_.graph.values[node.results[0]].name);
    } catch (const Error& error) {
      refuse_node(text_.graph, node,
                  concat("it cannot be computed for ", count.polynomial(), " of ",
                         text_.capacity.polynomial(), " tokens: ", error.what_happened()));
    }
    for (size_t i = 0; i < results.size(); ++i) {
      const Type expected = piece_type(node.results[i], count);
      if (graph_.type(results[i]) != expected)
        refuse_node(text_.graph, node,
                    concat("for ", count.polynomial(), " tokens it gives ", display(graph_.type(results[i])),
                           " instead of ", display(expected)));
      values_[node.results[i]] = results[i];
    }
  }

  bool slices_tokens(const Node& node) const {
    const ValueId x = node.operands[0];
    const int rank = text_.graph.type(x).rank();
    return text_.axes[x] != kNone && axis_attribute(node.attributes, "axis", rank) == text_.axes[x];
  }

  void add_attention(NodeId n, const Node& node) {
    const auto& [keys, values] = text_.caches.at(n);
    const ValueId all_keys = extend(keys, node.operands[1]), all_values = extend(values, node.operands[2]);
    Attributes attributes;
    for (const char* name : {"groups", "scale"})
      attributes.emplace_back(name, *find_attribute(node.attributes, name));
    values_[node.results[0]] =
        builder_.call("attention_cached", {values_[node.operands[0]], all_keys, all_values, position_[true]},
                      attributes, text_.graph.values[node.results[0]].name);
  }

  // The state with the new rows in it, which is also its next value.
  ValueId extend(const std::string& state, ValueId rows) {
    const ValueId old = builder_.read(state, cache_type(text_.graph.type(rows)));
    const ValueId updated = builder_.call("cache_update", {old, values_[rows], position_[true]}, {},
                                          concat(text_.graph.values[rows].name, ".cached"));
    builder_.build("write", {updated}, {{"state", state}});
    return updated;
  }

  const Text& text_;
  const Dim size_;
  Graph graph_;
  std::vector<ValueId> values_;         // of the piece, by value of the text's graph
  std::map<ValueId, ValueId> last_of_;  // the last token alone, of values needed whole
  GraphBuilder builder_;
  ValueId tokens_ = kNone, last_ = kNone;
  std::map<bool, ValueId> position_;  // of the first token: of the piece (true), of the last alone
};

class Decoding {
 public:
  Decoding(Module module, const PlanOptions& options) : module_(std::move(module)), options_(options) {}

  Module run() {
    const Graph forward = *module_.find_graph("forward");
    const ValueId tokens = find_tokens(forward);
    Text text{forward, forward.type(tokens).shape[kTokenAxis], {}, {}, {}};
    check(forward);
    text.axes = follow_token_axis(forward, tokens, kTokenAxis);
    if (text.axes[forward.outputs.at(0).value] == kNone)
      throw Error("the logits do not depend on the tokens");
    text.is_needed_whole = find_needed_whole(forward);
    for (size_t n = 0; n < forward.nodes.size(); ++n)
      if (forward.nodes[n].op == "attention") text.caches[static_cast<NodeId>(n)] = add_caches(forward, n);
    if (text.caches.empty()) throw Error("there is no attention, so there is nothing to keep between tokens");
    const int64_t chunk = std::min(options_.prefill_chunk, text.capacity.number());
    module_.graphs = {Piece(text, "prefill", Dim(chunk), true).make(),
                      Piece(text, "decode", Dim(1), false).make()};
    return std::move(module_);
  }

 private:
  void check(const Graph& forward) const {
    if (options_.prefill_chunk < 1)
      throw Error(concat("a chunk of the prompt has ", options_.prefill_chunk, " tokens"))
          .expected("1 or more");
    const Uses uses(forward);
    for (const Node& node : forward.nodes) {
      if (node.op == "write") refuse_node(forward, node, "the model changes a state");
      if (node.op == "attention") check_attention(forward, uses, node);
    }
  }

  // What attention_cached does not do.
  static void check_attention(const Graph& forward, const Uses& uses, const Node& node) {
    if (!uses.consumers[node.results[1]].empty() || uses.is_output[node.results[1]])
      refuse_node(forward, node, "its second result is used, which a cached attention does not have");
    for (const AttributeSpec& spec : op_of(node).attributes) {
      const bool is_kept = spec.name == "causal" || spec.name == "groups" || spec.name == "scale";
      if (!is_kept && *find_attribute(node.attributes, spec.name) != spec.default_value)
        refuse_node(forward, node, concat("a cached attention has no attribute '", spec.name, "'"));
    }
  }

  std::pair<std::string, std::string> add_caches(const Graph& forward, size_t n) {
    const Node& node = forward.nodes[n];
    const std::string& place = node.scope.empty() ? forward.values[node.results[0]].name : node.scope;
    std::string names[2];
    for (size_t i = 0; i < 2; ++i) {
      const std::string wish = concat(i == 0 ? "cache.keys." : "cache.values.", place);
      names[i] = wish;
      for (int count = 1; module_.find_state(names[i]) != nullptr; ++count)
        names[i] = concat(wish, ".", count);
      module_.states.push_back({names[i], State::kCache, cache_type(forward.type(node.operands[i + 1])),
                                Initializer{}, node.location});
    }
    return {names[0], names[1]};
  }

  Module module_;
  const PlanOptions& options_;
};

}  // namespace

Module decode(Module module, const PlanOptions& options) {
  return Decoding(logits_only(std::move(module)), options).run();
}

}  // namespace kumi
