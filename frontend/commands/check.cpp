// `kumi check`: errors of a model, or what it costs. Opens no device.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <optional>

#include "frontend/commands/commands.h"
#include "frontend/commands/model_argument.h"
#include "frontend/human.h"
#include "frontend/model_file.h"
#include "graph/cost_summary.h"
#include "graph/memory_report.h"
#include "graph/op.h"

namespace kumi {
namespace {

void print_interface(const Module& module) {
  const Graph& graph = main_graph(module);
  std::vector<std::string> sizes, inputs, outputs;
  for (const auto& [name, value] : module.sizes)
    sizes.push_back(value ? concat(name, " = ", value->polynomial()) : name);
  for (NodeId n : graph.inputs())
    inputs.push_back(concat(string_attribute(graph.nodes[n].attributes, "name"), ": ",
                            display(graph.type(graph.nodes[n].results[0]))));
  for (const Output& output : graph.outputs)
    outputs.push_back(concat(output.name, ": ", display(graph.type(output.value))));
  std::cout << "sizes       " << joined(sizes, "none") << "\ninputs      " << joined(inputs, "none")
            << "\noutputs     " << joined(outputs, "none") << "\n";
}

// What one element of all free sizes is.
const char* unit_of(const Module& module) {
  for (const auto& size : module.sizes)
    if (size.first == "seq") return "token";
  return "example";
}

void print_flops(const CostSummary& cost, const char* unit) {
  const double forward = cost.total.forward_flops / cost.tokens;
  std::cout << "FLOPs       " << with_prefix(forward) << " a " << unit << " forward";
  if (cost.has_backward)
    std::cout << ", " << with_prefix(cost.total.backward_flops / cost.tokens) << " backward";
  std::cout << " (" << with_thousands(static_cast<int64_t>(cost.tokens)) << " " << unit << "s a run)\n";
}

// What the plan takes, and what it would take if nothing were computed again.
void print_memory(const Module& module, PlanOptions options) {
  const MemoryReport report = report_memory(run_pipeline(module, options));
  std::optional<MemoryReport> without;
  if (report.recomputed_nodes > 0 && !module.has_run("recompute")) {
    options.memory_limit = 0;
    options.loss_chunks = 0;
    without = report_memory(run_pipeline(module, options));
  }
  std::cout << to_string(report, without ? &*without : nullptr);
}

// Of a dump: what its passes have found out already.
void print_planned(const Module& module) {
  std::cout << "passes      " << joined(module.passes, "none") << "\n";
  for (const Graph& graph : module.graphs) {
    std::cout << "graph       " << graph.name << ", "
              << with_thousands(static_cast<int64_t>(graph.nodes.size())) << " nodes";
    if (graph.arena_bytes) std::cout << ", " << bytes_text(*graph.arena_bytes) << " arena";
    std::cout << "\n";
  }
}

int check(const ModelArgument& argument) {
  OpenedModel opened = open_model(argument, std::nullopt, true);
  const Module module = run_pipeline(std::move(opened.module), opened.options, "infer");
  std::cout << "model       " << module.name << " (" << argument.path << ")\n";
  std::cout << "parameters  " << with_thousands(parameter_count(module)) << "\n";
  print_interface(module);
  if (module.find_graph("forward") != nullptr && !module.has_run("fuse")) {
    const CostSummary cost = summarize_cost(module);
    print_flops(cost, unit_of(module));
    print_memory(module, opened.options);
    std::cout << "\n" << to_string(cost);
  } else {
    print_planned(module);
    print_memory(module, opened.options);
  }
  return kExitSuccess;
}

}  // namespace

void add_check_command(CLI::App& app, CommandAction* run) {
  auto argument = std::make_shared<ModelArgument>();
  CLI::App* command = app.add_subcommand("check", "Checks a model or a recipe, and prints what it costs");
  add_model_argument(command, argument.get());
  command->footer(
      "Errors have file, line and column. Costs are those of the free sizes' defaults, or of --size.\n"
      "Example: kumi check models/plamo.kumi --set model.layers=8 --size seq=1024");
  command->callback([run, argument] { *run = [argument] { return check(*argument); }; });
}

}  // namespace kumi
