// A small language model as a module, built by hand: what the language would give, before `infer`.
#pragma once

#include "graph/builder.h"
#include "graph/graph.h"
#include "ops/all_ops.h"

namespace kumi::testing {

// Adds a weight and the node that reads it.
inline ValueId weight(Module& module, GraphBuilder& builder, const std::string& name, const Shape& shape) {
  module.states.push_back({name,
                           State::kWeight,
                           Type{DType::F32, shape},
                           Initializer{Initializer::kNormal, 0.02},
                           {"small.kumi", static_cast<int>(module.states.size()) + 1, 3}});
  return builder.call("read", {}, {{"state", name}, {"dtype", DType::F32}, {"shape", shape}}, name);
}

// tokens, labels: i32[batch, seq]; embedding, one residual layer with a norm, output layer, loss.
// Free sizes batch (2 by default) and seq (no default); outputs logits and loss.
inline Module small_model() {
  register_all_ops();
  Module module;
  module.name = "small";
  Dim vocab = Dim::named("vocab", 11), hidden = Dim::named("hidden", 6);
  module.parameters = {{"vocab", Dim(11)}, {"hidden", Dim(6)}, {"eps", 1e-6}};
  module.sizes = {{"batch", Dim(2)}, {"seq", std::nullopt}};
  Shape ids = {Dim::symbol("batch"), Dim::symbol("seq")};
  Graph graph;
  graph.name = "forward";
  GraphBuilder builder(graph);
  builder.location = {"small.kumi", 1, 1};
  auto input = [&](const std::string& name) {
    return builder.call("input", {}, {{"name", name}, {"dtype", DType::I32}, {"shape", ids}}, name);
  };
  ValueId tokens = input("tokens"), labels = input("labels");
  ValueId x =
      builder.call("embedding", {tokens, weight(module, builder, "embed.weight", {vocab, hidden})}, {}, "x");
  builder.scope = "layers.0";
  builder.location.line = 5;
  ValueId h = builder.call("rms_norm", {x, weight(module, builder, "layers.0.norm.weight", {hidden})},
                           {{"eps", 1e-6}}, "h");
  ValueId w = weight(module, builder, "layers.0.up.weight", {hidden, hidden});
  ValueId up = builder.call("matmul", {h, w}, {{"transpose_b", true}}, "up");
  x = builder.call("add", {x, builder.call("silu", {up}, {}, "gate")}, {}, "x");
  builder.scope = "";
  builder.location.line = 9;
  ValueId logits = builder.call("matmul", {x, weight(module, builder, "head.weight", {vocab, hidden})},
                                {{"transpose_b", true}}, "logits");
  ValueId loss = builder.build("cross_entropy", {logits, labels}, {}, "loss")[0];
  graph.outputs = {{"logits", logits}, {"loss", loss}};
  module.graphs.push_back(std::move(graph));
  return module;
}

}  // namespace kumi::testing
