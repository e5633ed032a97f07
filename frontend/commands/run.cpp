// `kumi run`: executes a graph once, from files to a file.
//
// The model may be a source or a dump at any stage: what its passes have decided stays, the others
// run. So a graph dumped after any pass gives the numbers that the source gives.
#include <CLI/CLI.hpp>
#include <cstring>
#include <iostream>
#include <memory>

#include "codegen/plan.h"
#include "frontend/commands/commands.h"
#include "frontend/commands/model_argument.h"
#include "frontend/feeds.h"
#include "frontend/files.h"
#include "frontend/model_file.h"
#include "runtime/checkpoint.h"
#include "runtime/executor.h"
#include "runtime/initialize.h"
#include "runtime/state_files.h"

namespace kumi {
namespace {

struct RunOptions {
  ModelArgument model;
  std::string weights, feed, out, device = "cpu";
  std::optional<int64_t> index;
  bool gradients = false;
  uint64_t seed = 0;
};

// The least that gives what is asked for, unless the module's passes have decided already.
Goal goal_of(const Module& module, bool gradients) {
  if (module.find_graph("update") != nullptr) return Goal::kTrain;
  if (module.find_graph("decode") != nullptr && !gradients) return Goal::kDecode;
  if (!module.has_run("autodiff")) return gradients ? Goal::kGradient : Goal::kForward;
  if (module.find_graph("gradient") != nullptr) return Goal::kGradient;
  if (gradients)
    throw Error("the module has no gradients: it was planned for its outputs alone")
        .hint("start from the model's source, or dump it with --goal gradient");
  return Goal::kForward;
}

bool is_gradient(const Module& module, const std::string& output) {
  if (!output.starts_with("grad.")) return false;
  const State* state = module.find_state(output.substr(5));
  return state != nullptr && state->kind == State::kWeight;
}

// A training step leaves its gradients in accumulators `gradient.<weight>`; with several micro-batches
// a step they are sums that still have to be divided by `loss.weight`.
const State* accumulator_of(const Executor& executor, const std::string& weight) {
  const std::string name = "gradient." + weight;
  return executor.has_state(name) ? &executor.state(name) : nullptr;
}

std::vector<float> accumulated(const Executor& executor, const State& accumulator) {
  std::vector<float> values(static_cast<size_t>(element_count(accumulator.type.shape).number()));
  executor.read_state(accumulator.name, values.data());
  if (executor.has_state("loss.weight")) {
    float weight = 0;
    executor.read_state("loss.weight", &weight);
    for (float& value : values) value /= std::max(weight, 1.0f);
  }
  return values;
}

class Run {
 public:
  explicit Run(const RunOptions& options) : options_(options) {}

  int execute() {
    check_output_file(options_.out);
    plan();
    std::unique_ptr<Device> device = open_device(options_.device);
    Executor executor(std::move(plan_), *device);
    load(executor);
    SafetensorsWriter writer(options_.out, specs(executor));
    executor.run(main_, feeds_);
    write_outputs(executor, &writer);
    if (options_.gradients && trains_) write_accumulated(executor, &writer);
    if (trains_) {
      executor.run("update", {});
      write_outputs(executor, &writer);
    }
    writer.commit();
    return kExitSuccess;
  }

 private:
  void plan() {
    Module module = load_model(options_.model.path, parse_model_settings(options_.model.settings));
    PlanOptions plan_options;
    plan_options.goal = goal_of(module, options_.gradients);
    plan_options.sizes = parse_sizes(options_.model.sizes);
    const Graph& graph = main_graph(module);
    if (!options_.feed.empty()) {
      file_.emplace(options_.feed);
      feeds_ = feeds_from_file(graph, *file_, options_.index);
      plan_options.sizes = sizes_from_feeds(graph, feeds_, plan_options.sizes);
    } else if (!graph.inputs().empty()) {
      const Node& input = graph.nodes[graph.inputs()[0]];
      throw Error(concat("the model has inputs, '", string_attribute(input.attributes, "name"),
                         "' the first of them"))
          .hint("give a file with their values: --feed F.safetensors");
    }
    module = run_pipeline(std::move(module), plan_options);
    check_feeds(main_graph(module), feeds_);
    plan_ = make_plan(std::move(module), dialect_of(options_.device));
    main_ = main_graph(plan_.module).name;
    trains_ = plan_options.goal == Goal::kTrain;
  }

  void load(Executor& executor) const {
    for (const State& state : executor.plan().states)
      if (state.kind != State::kWeight || options_.weights.empty())
        initialize_state(state, options_.seed, executor);
    if (!options_.weights.empty()) load_states(open_weights(options_.weights), State::kWeight, executor);
  }

  bool is_written(const GraphPlan& graph, const PlanPort& port, const Executor& executor) const {
    if (is_gradient(executor.plan().module, port.name)) return options_.gradients;
    if (graph.name == "update" || !trains_) return true;
    // What the update graph gives as well is the mean over the step.
    for (const PlanPort& other : executor.graph("update").outputs)
      if (other.name == port.name) return false;
    return true;
  }

  std::vector<TensorSpec> specs(const Executor& executor) const {
    std::vector<TensorSpec> specs;
    auto add = [&](const std::string& name) {
      const GraphPlan& graph = executor.graph(name);
      for (const PlanPort& port : graph.outputs)
        if (is_written(graph, port, executor))
          specs.push_back({port.name, port.type.dtype, numbers(port.type.shape)});
    };
    add(main_);
    if (!trains_) return specs;
    add("update");
    if (!options_.gradients) return specs;
    for (const State& state : executor.plan().states)
      if (const State* sum = state.kind == State::kWeight ? accumulator_of(executor, state.name) : nullptr)
        specs.push_back({"grad." + state.name, DType::F32, numbers(sum->type.shape)});
    return specs;
  }

  // Those of the graph that ran last.
  void write_outputs(const Executor& executor, SafetensorsWriter* writer) {
    const GraphPlan& graph = executor.graph(ran_main_ ? "update" : main_);
    ran_main_ = true;
    for (const PlanPort& port : graph.outputs) {
      if (!is_written(graph, port, executor)) continue;
      const HostTensor tensor = executor.output(port.name);
      writer->write(port.name, tensor.data.data(), tensor.data.size());
      if (port.type == Type{DType::F32, {}}) {
        float value = 0;
        std::memcpy(&value, tensor.data.data(), sizeof value);
        std::cout << port.name << " " << value << "\n";
      }
    }
  }

  static void write_accumulated(const Executor& executor, SafetensorsWriter* writer) {
    for (const State& state : executor.plan().states) {
      const State* sum = state.kind == State::kWeight ? accumulator_of(executor, state.name) : nullptr;
      if (sum == nullptr) continue;
      const std::vector<float> values = accumulated(executor, *sum);
      writer->write("grad." + state.name, values.data(), values.size() * sizeof(float));
    }
  }

  const RunOptions& options_;
  Plan plan_;
  std::optional<SafetensorsFile> file_;
  std::vector<Feed> feeds_;
  std::string main_;
  bool trains_ = false;
  bool ran_main_ = false;
};

}  // namespace

void add_run_command(CLI::App& app, CommandAction* run) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand("run", "Executes a model's graph once, from files to a file");
  command->add_option("MODEL", options->model.path, "a model: a .kumi source, or a dump at any stage")
      ->required();
  add_repeated(command, "--set", &options->model.settings, "sets a parameter of the model; repeatable");
  add_repeated(command, "--size", &options->model.sizes,
               "binds a free size; repeatable. Without it the feed's shapes do");
  command
      ->add_option(
          "--weights", options->weights,
          "safetensors with every weight by its name, or a checkpoint's folder; without it the weights' "
          "initial values")
      ->type_name("FILE");
  command->add_option("--feed", options->feed, "safetensors with the inputs by their names")
      ->type_name("FILE");
  command->add_option("--index", options->index,
                      "which step, where tensors of the feed have an axis of steps in front");
  command->add_flag("--grad", options->gradients, "also writes the gradients, as grad.<weight>");
  command->add_option("--out", options->out, "safetensors to write the outputs to")
      ->type_name("FILE")
      ->required();
  command->add_option("--seed", options->seed, "of the initial values; default 0");
  command->add_option("--device", options->device, "default cpu");
  command->footer(
      "A dump of a training step runs one step; its gradients are those before clipping.\n"
      "Example: kumi run models/plamo.kumi --weights w.safetensors --feed batches.safetensors --index 0 \\\n"
      "           --grad --out outputs.safetensors");
  command->callback([run, options] { *run = [options] { return Run(*options).execute(); }; });
}

}  // namespace kumi
