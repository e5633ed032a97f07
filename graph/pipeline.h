// The order of passes: one table, from the model as written to the graph that codegen takes.
//
// Each pass is one function Module -> Module in its own file under passes/, states what it needs
// and what it establishes, and is followed by the verifier. Dumps and timings are made here, once
// for all passes.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kumi {

struct OptimizerOptions {
  double learning_rate = 1e-3;  // peak, after warm-up
  int64_t warmup_steps = 0;     // linear from 0: step s of the warm-up uses learning_rate * s / warmup_steps
  int64_t decay_steps = 0;  // steps until the cosine has reached its end (counted from step 1); 0: constant
  double final_fraction = 0.1;  // of the peak, at the end of the cosine and after it
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;      // of weights with two or more axes
  double clip = 1.0;              // global gradient norm; 0: no clipping
  int64_t accumulation = 1;       // micro-batches a step
  bool skips_non_finite = false;  // a step whose loss or gradient norm is NaN or infinite updates nothing
};

enum class Goal : uint8_t {
  kForward,   // outputs only
  kGradient,  // outputs and grad.<weight>
  kTrain,     // a training step: gradient and update graphs
  kDecode,    // logits of a text that grows: graphs prefill and decode over a cache (graph/passes/decode.h)
};

// In which type products are computed (graph/passes/precision.h).
enum class Precision : uint8_t { kF32, kBF16 };

// A part of planning that changes no result beyond rounding and can be left out by name.
struct Optimization {
  std::string name;  // of the pass, where it is one
  std::string doc;
};
const std::vector<Optimization>& optimizations();
std::vector<std::string> optimization_names();

// What of the training state each rank holds (graph/passes/shard.h).
enum class ShardingMode : uint8_t { kDdp, kZero1, kZero2, kZero3, kZero3Local };
const char* to_string(ShardingMode mode);  // "ddp", "zero1", "zero2", "zero3", "zero3_local"
std::optional<ShardingMode> parse_sharding_mode(std::string_view name);
std::vector<std::string> sharding_mode_names();

struct PlanOptions {
  Goal goal = Goal::kForward;
  std::map<std::string, int64_t> sizes;  // free sizes: batch, seq; those missing take the model's default
  OptimizerOptions optimizer;
  std::string loss = "loss";  // the output to differentiate
  // Keep the model's other outputs (logits) in the gradient graph of a training step. They then
  // stay in memory until its end, so training leaves them out.
  bool keep_outputs = false;
  Precision precision = Precision::kF32;
  // Bytes that states and arena together may take; 0: no limit. What `recompute` aims at.
  int64_t memory_limit = 0;
  // Parts of the vocabulary by which training computes logits (graph/passes/chunk_loss.h); 0 or 1: all at
  // once.
  int64_t loss_chunks = 0;
  int64_t prefill_chunk = 64;  // tokens of one run of `prefill`, no more than the text may have
  Mesh mesh;                   // of the ranks that train together; sizes are those of one rank's part
  ShardingMode sharding = ShardingMode::kZero3Local;  // with more than one rank
  // How weights and gradients travel: "none" or a name of a quantization scheme (graph/quantized.h).
  std::string quantized_weights = "none";
  std::string quantized_gradients = "none";
  int64_t prefetch = 1;            // layers whose weights may be gathered ahead of their use
  std::set<std::string> disabled;  // names of optimizations()

  // One run of the graph "gradient" sees a part of the step's tokens only: losses and gradients are sums that
  // become means at the end of the step.
  bool sees_part_of_step() const { return optimizer.accumulation > 1 || mesh.ranks() > 1; }

  bool is_enabled(const std::string& optimization) const { return disabled.count(optimization) == 0; }
};
// Throws Error with "did you mean" for a name in `disabled` that is none.
void check_disabled(const PlanOptions& options);

struct Pass {
  std::string name;
  std::string doc;          // what it does
  std::string needs;        // what must hold before
  std::string establishes;  // what later passes may rely on
  // Null: the pass has its place but does nothing yet, or (codegen) is not Module -> Module.
  std::function<Module(Module, const PlanOptions&)> run;
  // The only goal that it is for; plans for others leave it out.
  std::optional<Goal> goal = std::nullopt;
};

// All passes in order: infer, decode, layout, merge, autodiff, precision, chunk_loss, recompute, shard,
// optimizer, quantize_comm,
// fuse, schedule, memory, codegen.
const std::vector<Pass>& pipeline();
const Pass& find_pass(const std::string& name);  // throws Error with "did you mean"

// Called after each pass that ran.
using PassObserver = std::function<void(const Pass& pass, const Module& module, double seconds)>;

// Runs the passes that have not run on this module yet (Module::passes), in order, up to and
// including `last` ("" means all), verifying after each. Passes that are disabled or for another goal are
// left out, as are those before one that has run: the module was planned without them. An Error thrown by a
// pass gets "while running the pass <name>".
Module run_pipeline(Module module, const PlanOptions& options, const std::string& last = "",
                    const PassObserver& observer = nullptr);

// Checks SSA (operands defined before use, ids in range, unique names), node schemas and types
// against the shape rules, states (exist, types equal, written at most once a graph), outputs.
// Throws Error naming graph and node.
void verify(const Module& module);

}  // namespace kumi
