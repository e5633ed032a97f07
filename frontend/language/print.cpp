#include "frontend/language/print.h"

#include <functional>
#include <map>
#include <vector>

#include "frontend/language/parser.h"
#include "graph/names.h"

namespace kumi {
namespace {

// Several lines that belong together: a state, or the nodes of one scope that stand in a row.
struct Block {
  std::string label;
  std::string text;
};

class Printer {
 public:
  explicit Printer(const Module& module) : module_(module) {
    for (const State& state : module.states) note_source(state.location);
    for (const Graph& graph : module.graphs)
      for (const Node& node : graph.nodes) note_source(node.location);
  }

  // `join` makes one text of blocks.
  std::string print(const std::function<std::string(const std::vector<Block>&)>& join) {
    std::string out = concat("model ", name_or_string(module_.name), parameters(), " {\n");
    if (!source_.empty()) out += concat("  source ", quoted(source_), "\n");
    if (!module_.passes.empty()) {
      out += "  passes ";
      for (size_t i = 0; i < module_.passes.size(); ++i) out += (i == 0 ? "" : ", ") + module_.passes[i];
      out += "\n";
    }
    for (const auto& [name, value] : module_.sizes)
      out += concat("  size ", name, value ? " = " + spelled(*value) : "", "\n");
    if (module_.mesh != Mesh()) out += concat("  mesh ", module_.mesh.nodes, ", ", module_.mesh.local, "\n");
    std::vector<Block> states;
    for (const State& state : module_.states) states.push_back({state.name, state_line(state)});
    if (!states.empty()) out += "\n" + join(states);
    for (const Graph& graph : module_.graphs) {
      out += concat("\n  graph ", graph.name);
      if (graph.arena_bytes) out += concat(" arena ", *graph.arena_bytes);
      if (graph.arena_lower_bound) out += concat(" lower_bound ", *graph.arena_lower_bound);
      out += " {\n" + join(blocks(graph));
      for (const Output& output : graph.outputs)
        out += concat("    output ", is_value_name(output.name) ? output.name : quoted(output.name), " = ",
                      graph.values[output.value].name, "\n");
      out += "  }\n";
    }
    return out + "}\n";
  }

 private:
  // The first file that is named; places in it are printed without it.
  void note_source(const SourceLocation& location) {
    if (source_.empty()) source_ = location.file;
  }

  static std::string name_or_string(const std::string& name) {
    return is_identifier(name) ? name : quoted(name);
  }

  std::string parameters() {
    std::string text;
    for (const auto& [name, value] : module_.parameters)
      text += concat(text.empty() ? "" : ", ", name, " = ", spelled(value));
    return text.empty() ? "" : "(" + text + ")";
  }

  std::string spelled(const Dim& dim) {
    if (dim.name().empty()) return dim.polynomial();
    auto [entry, is_new] = plain_.emplace(dim.name(), false);
    if (is_new) entry->second = language::is_plain_expression(dim.name());
    return (entry->second ? dim.name() : quoted(dim.name())) + "=" + dim.polynomial();
  }

  std::string spelled(const Shape& shape) {
    std::string text;
    for (const Dim& dim : shape) text += (text.empty() ? "" : ", ") + spelled(dim);
    return "[" + text + "]";
  }

  std::string spelled(const Type& type) { return to_string(type.dtype) + spelled(type.shape); }

  std::string spelled(const Attribute& attribute) {
    if (const Dim* dim = std::get_if<Dim>(&attribute)) return spelled(*dim);
    if (const Shape* shape = std::get_if<Shape>(&attribute)) return spelled(*shape);
    return to_string(attribute);
  }

  std::string origin(const SourceLocation& location) const {
    if (location == SourceLocation()) return "";
    std::string text = " from";
    if (location.file != source_ || location.line == 0) text += " " + quoted(location.file);
    if (location.line == 0) return text;
    text += concat(location.file != source_ ? ":" : " ", location.line);
    return location.column == 0 ? text : concat(text, ":", location.column);
  }

  std::string state_line(const State& state) {
    return concat("  state ", to_string(state.kind), " ", quoted(state.name), ": ", spelled(state.type),
                  " = ", to_string(state.initializer), state.offset ? concat(" at ", *state.offset) : "",
                  cut(state), tensors(state), origin(state.location), "\n");
  }

  static std::string cut(const State& state) {
    std::string text;
    for (MeshGroup group : state.cut) text += concat(text.empty() ? " cut " : ", ", to_string(group));
    return text;
  }

  std::string tensors(const State& state) {
    std::string text;
    for (const FlatTensor& tensor : state.tensors)
      text += concat(text.empty() ? " holds " : ", ", quoted(tensor.name), " ", spelled(tensor.shape), " = ",
                     to_string(tensor.initializer));
    return text;
  }

  std::string target(const Value& value) {
    std::string text = value.name + ": " + spelled(value.type);
    if (!value.placement) return text;
    const Placement& placement = *value.placement;
    text += " at ";
    if (placement.state.empty())
      text += std::to_string(placement.offset);
    else
      text += quoted(placement.state) + (placement.offset == 0 ? "" : concat(" + ", placement.offset));
    return placement.strides.empty() ? text : concat(text, " by ", to_string(placement.strides));
  }

  // An attribute that repeats the result's type (read's dtype and shape, reshape's shape) is left out, names
  // of sizes compared as well.
  bool is_in_type(const Graph& graph, const Node& node, const std::string& name, const Attribute& value) {
    if (node.results.size() != 1) return false;
    const Type& type = graph.type(node.results[0]);
    if (const DType* dtype = std::get_if<DType>(&value)) return name == "dtype" && *dtype == type.dtype;
    const Shape* shape = std::get_if<Shape>(&value);
    return shape != nullptr && name == "shape" && spelled(*shape) == spelled(type.shape);
  }

  std::string node_line(const Graph& graph, const Node& node) {
    std::string text;
    for (ValueId result : node.results) text += (text.empty() ? "" : ", ") + target(graph.values[result]);
    text += concat(node.results.empty() ? "" : " = ", node.op, "(");
    std::string arguments;
    for (ValueId operand : node.operands)
      arguments += (arguments.empty() ? "" : ", ") + (operand == kNone ? "_" : graph.values[operand].name);
    for (const auto& [name, value] : node.attributes)
      if (!is_in_type(graph, node, name, value))
        arguments += concat(arguments.empty() ? "" : ", ", name, " = ", spelled(value));
    text += arguments + ")";
    std::string annotations;
    if (node.group != kNone) annotations += concat(" group ", node.group);
    if (node.stream != 0) annotations += concat(" stream ", node.stream);
    if (node.recomputed) annotations += " recomputed";
    annotations += origin(node.location);
    return annotations.empty() ? text : text + "  @" + annotations;
  }

  std::vector<Block> blocks(const Graph& graph) {
    std::vector<Block> blocks;
    for (size_t n = 0; n < graph.nodes.size();) {
      const std::string& scope = graph.nodes[n].scope;
      Block block{scope, ""};
      const char* indent = scope.empty() ? "    " : "      ";
      if (!scope.empty()) block.text += "    scope " + quoted(scope) + " {\n";
      for (; n < graph.nodes.size() && graph.nodes[n].scope == scope; ++n)
        block.text += indent + node_line(graph, graph.nodes[n]) + "\n";
      if (!scope.empty()) block.text += "    }\n";
      blocks.push_back(std::move(block));
    }
    return blocks;
  }

  const Module& module_;
  std::string source_;
  std::map<std::string, bool> plain_;  // names of sizes that need no quotes
};

// The text without its numbers, and without the numbers that tell names apart ("h.12", "h").
std::string without_numbers(const std::string& text) {
  auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool begins = is_digit(text[i]) || (text[i] == '.' && i + 1 < text.size() && is_digit(text[i + 1]));
    if (!begins) {
      out += text[i];
      continue;
    }
    if (is_digit(text[i])) out += '#';
    while (i + 1 < text.size() && (is_digit(text[i + 1]) || text[i + 1] == '.')) ++i;
  }
  return out;
}

std::string join_all(const std::vector<Block>& blocks) {
  std::string out;
  for (const Block& block : blocks) out += block.text;
  return out;
}

// Of equal runs of up to this many blocks only the first is printed.
constexpr size_t kLongestPeriod = 24;

std::string join_folded(const std::vector<Block>& blocks) {
  std::vector<std::string> shapes;
  for (const Block& block : blocks) shapes.push_back(without_numbers(block.text));
  auto repeats = [&](size_t first, size_t period) {
    size_t count = 1;
    for (size_t at = first + period; at + period <= blocks.size(); at += period, ++count)
      for (size_t i = 0; i < period; ++i)
        if (shapes[at + i] != shapes[first + i]) return count;
    return count;
  };
  std::string out;
  for (size_t at = 0; at < blocks.size();) {
    size_t period = 1;
    size_t count = 1;
    while (period <= kLongestPeriod && count == 1) {
      count = repeats(at, period);
      if (count == 1) ++period;
    }
    if (count == 1) period = 1;
    for (size_t i = 0; i < period; ++i) out += blocks[at + i].text;
    const size_t end = at + period * count;
    if (count > 1)
      out += concat("    ... ", count - 1, " more like this: ", blocks[at + period].label,
                    count > 2 || period > 1 ? " to " + blocks[end - 1].label : "", "\n");
    at = end;
  }
  return out;
}

}  // namespace

std::string print_module(const Module& module) {
  return Printer(module).print(join_all);
}

std::string print_folded(const Module& module) {
  return Printer(module).print(join_folded);
}

}  // namespace kumi
