#include "frontend/generate.h"

#include <algorithm>
#include <cmath>

#include "graph/pipeline.h"
#include "graph/rewrite.h"
#include "graph/uses.h"
#include "runtime/checkpoint.h"
#include "runtime/initialize.h"

namespace kumi {
namespace {

// remove_dead_nodes() keeps all inputs, since they are the graph's interface; here it changes.
Graph without_unused_inputs(const Graph& graph) {
  const Uses uses(graph);
  std::vector<bool> keep(graph.nodes.size(), true);
  for (NodeId n : graph.inputs()) {
    const ValueId value = graph.nodes[n].results[0];
    keep[n] = uses.is_output[value] || !uses.consumers[value].empty();
  }
  std::vector<ValueId> same(graph.values.size());
  for (size_t v = 0; v < same.size(); ++v) same[v] = static_cast<ValueId>(v);
  return select_nodes(graph, keep, same);
}

Plan plan_for(Module module, int64_t window) {
  PlanOptions options;
  for (const auto& [name, number] : {std::pair<std::string, int64_t>{"batch", 1}, {"seq", window}})
    for (const auto& size : module.sizes)
      if (size.first == name) options.sizes[name] = number;
  return make_plan(run_pipeline(std::move(module), options));
}

}  // namespace

Module logits_only(Module module) {
  Graph* graph = module.find_graph("forward");
  if (graph == nullptr)
    throw Error(concat("the model '", module.name, "' is planned for training already"))
        .hint("text is generated with a model's source");
  const ValueId logits = graph->find_output("logits");
  if (logits == kNone) throw Error(concat("the model '", module.name, "' has no output 'logits'"));
  graph->outputs = {{"logits", logits}};
  *graph = without_unused_inputs(remove_dead_nodes(*graph));
  for (NodeId n : graph->inputs()) {
    const std::string& name = string_attribute(graph->nodes[n].attributes, "name");
    if (name != "tokens")
      throw Error(concat("the model's logits need the input '", name, "'")).expected("tokens alone");
  }
  return module;
}

Generator::Generator(Module module, int64_t window, const SafetensorsFile& weights, Device& device)
    : window_(window) {
  Plan plan = plan_for(logits_only(std::move(module)), window);
  const GraphPlan& graph = plan.graphs.at(0);
  const Type& logits = graph.outputs.at(0).type;
  const std::vector<int64_t> shape = numbers(logits.shape);
  if (shape.size() != 3 || shape[0] != 1 || shape[1] != window)
    throw Error(concat("the model's logits are ", display(logits))).expected("[batch, seq, vocab]");
  if (graph.inputs.size() != 1 || numbers(graph.inputs[0].type.shape) != std::vector<int64_t>{1, window})
    throw Error("the model has no input 'tokens': i32[batch, seq]");
  vocab_ = shape[2];
  dtype_ = logits.dtype;
  executor_ = std::make_unique<Executor>(std::move(plan), device);
  load_states(weights, State::kWeight, *executor_);
}

std::vector<float> Generator::next_logits(std::span<const int32_t> tokens) {
  const auto window = static_cast<size_t>(window_);
  if (tokens.size() > window) tokens = tokens.last(window);
  std::vector<int32_t> padded(tokens.begin(), tokens.end());
  padded.resize(window, tokens.back());
  const Feed feed{"tokens", DType::I32, {1, window_}, padded.data()};
  executor_->run("forward", {&feed, 1});
  const int64_t row_bytes = vocab_ * size_of(dtype_);
  std::vector<std::byte> row(static_cast<size_t>(row_bytes));
  executor_->read_output("logits", row.data(), static_cast<int64_t>(tokens.size() - 1) * row_bytes,
                         row_bytes);
  return as_f32(dtype_, row.data(), vocab_);
}

bool Generator::run(std::vector<int32_t> prompt, const GenerationOptions& options,
                    const std::function<void(int32_t)>& emit) {
  if (prompt.empty()) throw Error("there is nothing to continue: the prompt has no tokens");
  check(options.sampling);
  const uint64_t key = random_key(options.seed, "generate");
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    if (options.should_stop && options.should_stop()) return false;
    std::vector<float> logits = next_logits(prompt);
    if (options.vocab > 0) logits.resize(std::min(logits.size(), static_cast<size_t>(options.vocab)));
    for (int32_t token : options.never)
      if (token >= 0 && static_cast<size_t>(token) < logits.size()) logits[token] = -HUGE_VALF;
    const int32_t token = choose_token(logits, options.sampling, uniform01(key, static_cast<uint64_t>(i)));
    if (token == options.end) return true;
    emit(token);
    prompt.push_back(token);
  }
  return true;
}

}  // namespace kumi
