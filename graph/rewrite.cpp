#include "graph/rewrite.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <unordered_map>

#include "graph/op.h"
#include "graph/reorder.h"

namespace kumi {
namespace {

bool has_effect(const Node& node) {
  return node.op == "write";
}

std::vector<ValueId> identity(const Graph& graph) {
  std::vector<ValueId> replacement(graph.values.size());
  std::iota(replacement.begin(), replacement.end(), 0);
  return replacement;
}

void mix(size_t* hash, size_t value) {
  *hash ^= value + 0x9e3779b97f4a7c15u + (*hash << 6) + (*hash >> 2);
}

struct AttributeHash {
  size_t operator()(bool value) const { return value; }
  size_t operator()(const Dim& value) const {
    return static_cast<size_t>(value.constant()) * 31 + value.terms().size();
  }
  size_t operator()(double value) const { return std::hash<double>()(value); }
  size_t operator()(const std::string& value) const { return std::hash<std::string>()(value); }
  size_t operator()(DType value) const { return static_cast<size_t>(value); }
  size_t operator()(const Shape& value) const {
    size_t hash = value.size();
    for (const Dim& dim : value) mix(&hash, (*this)(dim));
    return hash;
  }
};

size_t hash_of(const Node& node) {
  size_t hash = std::hash<std::string>()(node.op);
  for (ValueId operand : node.operands) mix(&hash, static_cast<size_t>(operand) + 1);
  for (const auto& attribute : node.attributes) mix(&hash, std::visit(AttributeHash{}, attribute.second));
  return hash;
}

}  // namespace

Graph select_nodes(const Graph& graph, const std::vector<bool>& keep,
                   const std::vector<ValueId>& replacement) {
  Graph result;
  result.name = graph.name;
  result.arena_bytes = graph.arena_bytes;
  result.arena_lower_bound = graph.arena_lower_bound;
  std::vector<ValueId> new_id(graph.values.size(), kNone);
  auto translate = [&](ValueId value) { return value == kNone ? kNone : new_id[replacement[value]]; };
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    if (!keep[i]) continue;
    Node node = graph.nodes[i];
    for (ValueId& operand : node.operands) operand = translate(operand);
    for (ValueId& id : node.results) {
      Value value = graph.values[id];
      value.producer = static_cast<NodeId>(result.nodes.size());
      new_id[id] = static_cast<ValueId>(result.values.size());
      id = new_id[id];
      result.values.push_back(std::move(value));
    }
    result.nodes.push_back(std::move(node));
  }
  for (const Output& output : graph.outputs) result.outputs.push_back({output.name, translate(output.value)});
  return result;
}

Graph remove_dead_nodes(const Graph& graph) {
  std::vector<bool> live(graph.nodes.size());
  for (const Output& output : graph.outputs) live[graph.values[output.value].producer] = true;
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    const Node& node = graph.nodes[i];
    live[i] = live[i] || has_effect(node) || node.op == "input";
    if (!live[i]) continue;
    for (ValueId operand : node.operands)
      if (operand != kNone) live[graph.values[operand].producer] = true;
  }
  return select_nodes(graph, live, identity(graph));
}

Graph merge_equal_nodes(const Graph& graph) {
  std::vector<ValueId> replacement = identity(graph);
  std::vector<bool> keep(graph.nodes.size(), true);
  std::unordered_multimap<size_t, Node> seen;  // with operands replaced
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    if (has_effect(graph.nodes[i])) continue;
    Node node = graph.nodes[i];
    for (ValueId& operand : node.operands)
      if (operand != kNone) operand = replacement[operand];
    size_t hash = hash_of(node);
    auto [begin, end] = seen.equal_range(hash);
    while (begin != end &&
           !(begin->second.op == node.op && begin->second.operands == node.operands &&
             begin->second.attributes == node.attributes && begin->second.recomputed == node.recomputed))
      ++begin;
    if (begin == end) {
      seen.emplace(hash, std::move(node));
      continue;
    }
    keep[i] = false;
    for (size_t j = 0; j < node.results.size(); ++j) replacement[node.results[j]] = begin->second.results[j];
  }
  return select_nodes(graph, keep, replacement);
}

void hoist_appended_nodes(Graph* graph, NodeId first) {
  constexpr NodeId kNowhere = -1;
  NodeId count = static_cast<NodeId>(graph->nodes.size());
  // The node of the finished graph after which each node stands; its own id below `first`.
  std::vector<NodeId> anchor(count, kNowhere);
  for (NodeId n = 0; n < count; ++n) {
    if (n < first) anchor[n] = n;
    for (ValueId operand : graph->nodes[n].operands)
      if (n >= first && operand != kNone)
        anchor[n] = std::max(anchor[n], anchor[graph->values[operand].producer]);
  }
  // Nodes without operands follow their first user, from the last to the first: users come later.
  std::vector<NodeId> first_user(count, count);
  for (NodeId n = count; n-- > first;) {
    if (anchor[n] == kNowhere) anchor[n] = first_user[n];
    for (ValueId operand : graph->nodes[n].operands) {
      if (operand == kNone) continue;
      NodeId& user = first_user[graph->values[operand].producer];
      user = std::min(user, anchor[n]);
    }
  }
  std::vector<NodeId> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](NodeId a, NodeId b) { return anchor[a] < anchor[b]; });
  reorder(graph, order);
}

}  // namespace kumi
