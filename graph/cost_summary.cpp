#include "graph/cost_summary.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <unordered_map>

#include "graph/names.h"
#include "graph/op.h"
#include "graph/passes/autodiff.h"
#include "graph/pipeline.h"
#include "graph/quantity.h"

namespace kumi {
namespace {

// The name of a weight's module: "lm_head" of "lm_head.weight".
std::string owner_of(const std::string& weight) {
  size_t dot = weight.rfind('.');
  return dot == std::string::npos ? weight : weight.substr(0, dot);
}

class Summary {
 public:
  explicit Summary(const Module& module) : module_(module) {}

  CostSummary run(const std::string& loss) {
    if (!module_.has_run("infer") || module_.find_graph("forward") == nullptr)
      throw Error("costs are counted on a model's graph 'forward' after the pass infer");
    const Graph& forward = *module_.find_graph("forward");
    for (const auto& [name, value] : module_.sizes)
      if (value) summary_.tokens *= static_cast<double>(value->number());
    add_work(forward, 0, forward.nodes.size());
    ValueId output = forward.find_output(loss);
    summary_.has_backward = output != kNone && forward.type(output) == Type{DType::F32, {}};
    if (summary_.has_backward) {
      PlanOptions options;
      options.goal = Goal::kGradient;
      options.loss = loss;
      Module differentiated = autodiff(module_, options);
      // The forward nodes come first; no node of the forward graph is dead or doubled after infer.
      add_work(*differentiated.find_graph("gradient"), forward.nodes.size(),
               differentiated.find_graph("gradient")->nodes.size());
    }
    add_parameters(forward);
    for (CostRow& row : summary_.rows) {
      row.repeats = std::max<int64_t>(1, static_cast<int64_t>(layers_[row.part].size()));
      summary_.total.parameters += row.parameters;
      summary_.total.forward_flops += row.forward_flops;
      summary_.total.backward_flops += row.backward_flops;
      summary_.total.forward_bytes += row.forward_bytes;
      summary_.total.backward_bytes += row.backward_bytes;
    }
    std::erase_if(summary_.rows, [](const CostRow& row) {
      return row.parameters == 0 && row.forward_flops == 0 && row.backward_flops == 0;
    });
    return std::move(summary_);
  }

 private:
  CostRow& row(const std::string& part) {
    auto [entry, is_new] = index_.emplace(part, summary_.rows.size());
    if (is_new) summary_.rows.push_back({.part = part});
    return summary_.rows[entry->second];
  }

  std::string part_of(const Graph& graph, const Node& node) {
    if (!node.scope.empty()) {
      std::string layer;
      std::string part = fold_layer(node.scope, &layer);
      if (!layer.empty()) layers_[part].insert(layer);
      return part;
    }
    if (node.op == "read") return owner_of(string_attribute(node.attributes, "state"));
    for (ValueId operand : node.operands)
      if (operand != kNone && graph.producer(operand).op == "read")
        return owner_of(string_attribute(graph.producer(operand).attributes, "state"));
    return "";
  }

  void add_work(const Graph& graph, size_t begin, size_t end) {
    for (size_t n = begin; n < end; ++n) {
      const Node& node = graph.nodes[n];
      std::string part = part_of(graph, node);
      // Backward nodes have the location of their forward node, and so its part.
      if (node.scope.empty() && node.location.known()) {
        auto [known, is_new] = part_at_.emplace(to_string(node.location), part);
        if (part.empty()) part = known->second;
        if (!is_new && known->second.empty()) known->second = part;
      }
      CostRow& to = row(part);
      if (op_of(node).is_state_access || op_of(node).is_view || node.op == "constant") continue;
      Cost cost = cost_of(graph, node);
      (begin == 0 ? to.forward_flops : to.backward_flops) += cost.flops;
      (begin == 0 ? to.forward_bytes : to.backward_bytes) += cost.bytes;
    }
  }

  void add_parameters(const Graph& forward) {
    std::unordered_map<std::string, std::string> parts;
    for (const Node& node : forward.nodes)
      if (node.op == "read")
        parts.emplace(string_attribute(node.attributes, "state"), part_of(forward, node));
    for (const State& state : module_.states) {
      if (state.kind != State::kWeight) continue;
      auto found = parts.find(state.name);
      std::string layer;
      std::string part = found == parts.end() ? fold_layer(owner_of(state.name), &layer) : found->second;
      row(part).parameters += element_count(state.type.shape).number();
    }
  }

  const Module& module_;
  CostSummary summary_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::set<std::string>> layers_;
  std::unordered_map<std::string, std::string> part_at_;
};

// 26.2e9 -> "26.2 G".
std::string with_prefix(double number) {
  const char* prefixes[] = {"", "k", "M", "G", "T", "P", "E"};
  size_t i = 0;
  for (; number >= 999.5 && i + 1 < std::size(prefixes); ++i) number /= 1000;
  char text[64];
  std::snprintf(text, sizeof text,
                i == 0 || number >= 99.95 ? "%.0f %s"
                : number >= 9.995         ? "%.1f %s"
                                          : "%.2f %s",
                number, prefixes[i]);
  return text;
}

}  // namespace

CostSummary summarize_cost(const Module& module, const std::string& loss) {
  return Summary(module).run(loss);
}

std::string to_string(const CostSummary& summary) {
  std::vector<std::vector<std::string>> lines = {
      {"part", "parameters", "forward FLOP/token", "backward FLOP/token", "bytes moved/token"}};
  auto add = [&](const CostRow& row, std::string name) {
    if (row.repeats > 1) name += concat(" (", row.repeats, " layers)");
    lines.push_back({name, with_thousands(row.parameters), with_prefix(row.forward_flops / summary.tokens),
                     with_prefix(row.backward_flops / summary.tokens),
                     with_prefix((row.forward_bytes + row.backward_bytes) / summary.tokens) + "B"});
  };
  for (const CostRow& row : summary.rows) add(row, row.part.empty() ? "(other)" : row.part);
  add(summary.total, "total");
  std::vector<size_t> widths(lines[0].size());
  for (const auto& line : lines)
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  std::string text;
  for (size_t l = 0; l < lines.size(); ++l) {
    if (l == 1 || l + 1 == lines.size()) {
      size_t width = 0;
      for (size_t w : widths) width += w + 2;
      text += std::string(width - 2, '-') + "\n";
    }
    for (size_t i = 0; i < widths.size(); ++i) {
      std::string padding(widths[i] - lines[l][i].size(), ' ');
      text += i == 0 ? lines[l][i] + padding : "  " + padding + lines[l][i];
    }
    text.erase(text.find_last_not_of(' ') + 1);
    text += "\n";
  }
  return text;
}

}  // namespace kumi
