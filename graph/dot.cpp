#include "graph/dot.h"

#include <map>

#include "graph/op.h"

namespace kumi {
namespace {

// Scopes deeper than this are drawn in one cluster.
constexpr size_t kDeepestCluster = 16;
// GraphViz' "set3" brewer scheme has 12 colours.
constexpr int kColors = 12;

std::string escaped(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out + "\"";
}

std::vector<std::string> segments(const std::string& scope) {
  std::vector<std::string> parts;
  for (size_t begin = 0; !scope.empty();) {
    size_t end = parts.size() + 1 == kDeepestCluster ? std::string::npos : scope.find('.', begin);
    parts.push_back(scope.substr(begin, end - begin));
    if (end == std::string::npos) break;
    begin = end + 1;
  }
  return parts;
}

class Drawing {
 public:
  std::string run(const Module& module) {
    out_ << "digraph " << escaped(module.name.empty() ? "kumi" : module.name) << " {\n"
         << "  rankdir=TB;\n  node [shape=box, style=\"rounded,filled\", fillcolor=white, "
            "fontname=\"Helvetica\", "
            "fontsize=10, colorscheme=set312];\n  edge [fontname=\"Helvetica\", fontsize=8];\n";
    for (const Graph& graph : module.graphs) draw(graph);
    out_ << "}\n";
    return out_.str();
  }

 private:
  struct Cluster {
    std::map<std::string, size_t> index;  // of an inner cluster by its name
    std::vector<std::pair<std::string, Cluster>> inner;
    std::vector<NodeId> nodes;
  };

  void draw(const Graph& graph) {
    graph_ = &graph;
    Cluster root;
    for (size_t n = 0; n < graph.nodes.size(); ++n) {
      Cluster* cluster = &root;
      for (const std::string& name : segments(graph.nodes[n].scope)) {
        auto [entry, is_new] = cluster->index.emplace(name, cluster->inner.size());
        if (is_new) cluster->inner.emplace_back(name, Cluster{});
        cluster = &cluster->inner[entry->second].second;
      }
      cluster->nodes.push_back(static_cast<NodeId>(n));
    }
    draw_cluster(graph.name, root, 1);
    for (size_t n = 0; n < graph.nodes.size(); ++n)
      for (ValueId operand : graph.nodes[n].operands)
        if (operand != kNone) draw_edge(operand, concat("n", n));
    for (size_t i = 0; i < graph.outputs.size(); ++i) {
      std::string id = id_of(concat("o", i));
      out_ << "  " << id << " [label=" << escaped(graph.outputs[i].name)
           << ", shape=oval, fillcolor=gold];\n";
      draw_edge(graph.outputs[i].value, concat("o", i));
    }
  }

  std::string id_of(const std::string& local) const { return escaped(graph_->name + "/" + local); }

  void draw_cluster(std::string name, const Cluster& given, int depth) {
    const Cluster* cluster = &given;
    // A cluster that holds nothing but one other is drawn as one: model.layers.layers.
    while (depth > 1 && cluster->nodes.empty() && cluster->inner.size() == 1) {
      name += "." + cluster->inner[0].first;
      cluster = &cluster->inner[0].second;
    }
    std::string indent(static_cast<size_t>(2 * depth), ' ');
    out_ << indent << "subgraph " << escaped(concat("cluster", clusters_++)) << " {\n"
         << indent << "  label=" << escaped(name) << "; fontname=\"Helvetica\"; color=gray;\n";
    for (NodeId n : cluster->nodes) draw_node(n, indent + "  ");
    for (const auto& [inner_name, inner] : cluster->inner) draw_cluster(inner_name, inner, depth + 1);
    out_ << indent << "}\n";
  }

  void draw_node(NodeId n, const std::string& indent) {
    const Node& node = graph_->nodes[n];
    std::string label = node.op;
    if (const Attribute* state = find_attribute(node.attributes, "state"))
      if (const std::string* name = std::get_if<std::string>(state)) label += " " + *name;
    if (const Attribute* value = find_attribute(node.attributes, "value")) label += " " + to_string(*value);
    for (ValueId result : node.results)
      label += "\n" + graph_->values[result].name + ": " + to_string(graph_->type(result));
    out_ << indent << id_of(concat("n", n)) << " [label=" << escaped(label);
    const OpDef* op = find_op(node.op);
    if (op != nullptr && op->is_state_access) out_ << ", shape=cylinder, style=filled, fillcolor=lightgray";
    if (node.group != kNone) out_ << ", fillcolor=" << 1 + node.group % kColors;
    std::string tooltip;
    for (const auto& [name, attribute] : node.attributes)
      tooltip += (tooltip.empty() ? "" : ", ") + name + " = " + to_string(attribute);
    if (node.group != kNone) tooltip += concat(tooltip.empty() ? "" : ", ", "group ", node.group);
    if (node.recomputed) tooltip += concat(tooltip.empty() ? "" : ", ", "recomputed");
    if (node.location.known()) tooltip += (tooltip.empty() ? "" : "\n") + to_string(node.location);
    out_ << ", tooltip=" << escaped(tooltip) << "];\n";
  }

  void draw_edge(ValueId from, const std::string& to) {
    out_ << "  " << id_of(concat("n", graph_->values[from].producer)) << " -> " << id_of(to) << ";\n";
  }

  const Graph* graph_ = nullptr;
  std::ostringstream out_;
  int clusters_ = 0;
};

}  // namespace

std::string to_dot(const Module& module) {
  return Drawing().run(module);
}

}  // namespace kumi
