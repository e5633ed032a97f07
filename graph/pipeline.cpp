#include "graph/pipeline.h"

#include <algorithm>
#include <chrono>

#include "graph/passes/autodiff.h"
#include "graph/passes/chunk_loss.h"
#include "graph/passes/decode.h"
#include "graph/passes/fuse.h"
#include "graph/passes/infer.h"
#include "graph/passes/layout.h"
#include "graph/passes/memory.h"
#include "graph/passes/merge.h"
#include "graph/passes/optimizer.h"
#include "graph/passes/precision.h"
#include "graph/passes/quantize_comm.h"
#include "graph/passes/recompute.h"
#include "graph/passes/schedule.h"
#include "graph/passes/shard.h"

namespace kumi {

const std::vector<Pass>& pipeline() {
  static const std::vector<Pass> passes = {
      {"infer",
       "Gives every free size its number, applies all shape rules again, merges equal nodes and removes "
       "unused ones.",
       "a module from the language, with sizes that may be symbolic",
       "all sizes are numbers; no node is dead, no two are equal", infer},
      {"decode",
       "For writing text: turns the graph 'forward' into 'prefill', a chunk of the prompt, and 'decode', one "
       "more token, both over a cache of attention's keys and values.",
       "tokens: i32[batch, seq] alone give the output logits; positions meet in causal attention only",
       "graphs 'prefill' and 'decode' that share weights and cache; seq is the cache's capacity", decode,
       Goal::kDecode},
      {"layout",
       "Moves transposes to where they cancel or where an op takes them for nothing: attention and rope in "
       "the order in which projections give their heads.",
       "all sizes are numbers", "fewer transposes", layout},
      {"merge",
       "Makes one product of the linear layers of one input: q, k, v, gate and up of a layer. The weights "
       "keep their names.",
       "weights are read one by one", "products of a concat of weights, whose results are split", merge},
      {"autodiff",
       "Turns the graph 'forward' into 'gradient': its nodes, then the gradients of the loss, built by the "
       "ops' rules.",
       "the loss is a scalar f32 output; every op between a weight and the loss has a gradient rule",
       "outputs grad.<weight> for all weights; backward nodes carry the scope of their forward node",
       autodiff},
      {"precision",
       "With precision BF16: products and attention take and give bf16 and accumulate in f32; norms, "
       "softmax, "
       "loss, weights and their gradients stay f32.",
       "gradients are in the graph", "casts where types meet", precision},
      {"chunk_loss",
       "With plan.loss_chunks: computes logits and their gradients by parts of the vocabulary, one after the "
       "other, so that those of all classes never exist at once.",
       "gradients are in the graph; a product gives the logits, and only cross_entropy looks at them",
       "cross_entropy by parts, logits again in the backward part; outputs that training leaves out are gone",
       chunk_loss},
      {"recompute",
       "With a memory limit that is too small for all activations: computes some of them again, right before "
       "the backward node that needs them, chosen by bytes freed per work until the plan fits.",
       "gradients are in the graph",
       "the plan fits into the limit, if no later pass is given other options; Node::recomputed", recompute},
      {"shard",
       "With several ranks: puts weights and their training state on the mesh, as flat buffers of a layer, "
       "gathers a layer's weights where they are used and reduces its gradients when they are known.",
       "outputs grad.<weight> and the loss",
       "flat states, cut among ranks; collectives; outputs grad.<flat state>; graph 'replicate'", shard},
      {"optimizer",
       "Builds the training step: accumulators in 'gradient', and 'update' with clipping, schedule and "
       "AdamW.",
       "outputs grad.<weight> and the loss",
       "graphs 'gradient' (once a micro-batch) and 'update' (once a step) that share state", optimizer},
      {"quantize_comm",
       "With quantize.weights or quantize.gradients: ranks send codes and scales; replicas of weights that "
       "are "
       "cut are kept quantized and dequantized at the use.",
       "collectives are nodes", "all_gathers of codes, exchanges of quantized gradients", quantize_comm},
      {"fuse", "Gathers element-wise nodes, row reductions and their epilogues into groups, each one kernel.",
       "all sizes are numbers", "Node::group; the nodes of a group are adjacent", fuse},
      {"schedule", "Orders what runs: reads before their first use, writes right after their value.",
       "groups", "the order of nodes is the order of execution; Node::stream", schedule},
      {"memory", "Gives every value that needs memory a fixed place, in a state or in the graph's arena.",
       "the order of execution",
       "Value::placement and Graph::arena_bytes; no later pass may add values or change the order", memory},
      {"codegen",
       "Generates kernels for groups and library calls for the rest; its result is a Plan (codegen/plan.h), "
       "no module.",
       "groups, order and places", "a Plan that an executor runs", nullptr},
  };
  return passes;
}

const std::vector<Optimization>& optimizations() {
  static const std::vector<Optimization> all = {
      {"layout", "transposes absorbed by attention and rope"},
      {"merge", "one product for the projections of one input"},
      {"sweep", "one AdamW over all weights, and one gradient norm"},
      {"fuse", "gathering nodes into kernels"},
      {"in_place", "results that take the place of an operand in memory"},
      {"recompute", "computing activations again to stay below the memory limit"},
  };
  return all;
}

std::vector<std::string> optimization_names() {
  std::vector<std::string> names;
  for (const Optimization& optimization : optimizations()) names.push_back(optimization.name);
  return names;
}

void check_disabled(const PlanOptions& options) {
  const std::vector<std::string> names = optimization_names();
  for (const std::string& name : options.disabled)
    if (std::find(names.begin(), names.end(), name) == names.end())
      throw Error(concat("there is no optimization ", quoted(name), " to disable"))
          .expected("one of " + joined(names))
          .hint(did_you_mean(name, names));
}

namespace {
constexpr ShardingMode kAllShardingModes[] = {ShardingMode::kDdp, ShardingMode::kZero1, ShardingMode::kZero2,
                                              ShardingMode::kZero3, ShardingMode::kZero3Local};
}  // namespace

const char* to_string(ShardingMode mode) {
  static constexpr const char* kNames[] = {"ddp", "zero1", "zero2", "zero3", "zero3_local"};
  return kNames[static_cast<size_t>(mode)];
}

std::optional<ShardingMode> parse_sharding_mode(std::string_view name) {
  for (ShardingMode mode : kAllShardingModes)
    if (name == to_string(mode)) return mode;
  return std::nullopt;
}

std::vector<std::string> sharding_mode_names() {
  std::vector<std::string> names;
  for (ShardingMode mode : kAllShardingModes) names.push_back(to_string(mode));
  return names;
}

const Pass& find_pass(const std::string& name) {
  std::vector<std::string> names;
  for (const Pass& pass : pipeline()) {
    if (pass.name == name) return pass;
    names.push_back(pass.name);
  }
  throw Error(concat("unknown pass ", quoted(name)))
      .expected("one of " + joined(names))
      .hint(did_you_mean(name, names));
}

namespace {

bool is_optimization(const std::string& pass) {
  const std::vector<Optimization>& all = optimizations();
  return std::any_of(all.begin(), all.end(), [&](const Optimization& o) { return o.name == pass; });
}

// The passes that have run must be the first of the table, in its order, but for optimizations and passes
// for another goal, which were left out: later ones rely on earlier ones.
void check_history(const Module& module) {
  size_t next = 0;
  for (const Pass& pass : pipeline()) {
    if (next == module.passes.size()) return;
    if (module.passes[next] == pass.name)
      ++next;
    else if (pass.run && !pass.goal && !is_optimization(pass.name))
      break;
  }
  if (next == module.passes.size()) return;
  find_pass(module.passes[next]);  // throws if unknown
  throw Error(concat("the module says that the pass '", module.passes[next],
                     "' has run, but not those before it, or not in the order of the pipeline"));
}

// What earlier passes decided cannot be changed any more by other options.
void check_goal(const Module& module, const PlanOptions& options) {
  const char* missing = nullptr;
  const bool has_gradients = options.goal == Goal::kGradient || options.goal == Goal::kTrain;
  const bool decodes = module.find_graph("decode") != nullptr;
  const bool is_past_decode = !module.passes.empty() && module.passes.back() != "infer";
  if (options.goal == Goal::kDecode && is_past_decode && !decodes)
    missing = "decode";
  else if (options.goal != Goal::kDecode && decodes)
    missing = has_gradients ? "gradient" : "forward";
  else if (has_gradients && module.has_run("autodiff") && module.find_graph("gradient") == nullptr)
    missing = "gradient";
  else if (options.goal == Goal::kTrain && module.has_run("optimizer") &&
           module.find_graph("update") == nullptr)
    missing = "update";
  if (missing != nullptr)
    throw Error(concat("this plan was made for another goal: it has no graph '", missing, "'"))
        .hint("start from the model's source");
  if (module.has_run("infer")) check_bound_sizes(module, options);
}

void verify_after(const Module& module, const std::string& pass) {
  try {
    verify(module);
  } catch (Error& error) {
    error.while_doing(concat("checking what the pass ", pass, " gave"));
    throw;
  }
}

}  // namespace

Module run_pipeline(Module module, const PlanOptions& options, const std::string& last,
                    const PassObserver& observer) {
  if (!last.empty()) find_pass(last);
  check_disabled(options);
  check_history(module);
  verify(module);
  check_goal(module, options);
  const std::vector<Pass>& passes = pipeline();
  size_t first = 0;  // after the last that has run
  for (size_t i = 0; i < passes.size(); ++i)
    if (module.has_run(passes[i].name)) first = i + 1;
  for (size_t i = 0; i < passes.size(); ++i) {
    const Pass& pass = passes[i];
    if (pass.run && i >= first && options.is_enabled(pass.name) &&
        (!pass.goal || *pass.goal == options.goal)) {
      auto start = std::chrono::steady_clock::now();
      try {
        module = pass.run(std::move(module), options);
      } catch (Error& error) {
        error.while_doing(concat("running the pass ", pass.name));
        throw;
      }
      module.passes.push_back(pass.name);
      double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      verify_after(module, pass.name);
      if (observer) observer(pass, module, seconds);
    }
    if (pass.name == last) break;
  }
  return module;
}

}  // namespace kumi
