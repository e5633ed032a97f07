// shard: puts the training state on the mesh of ranks.
//
// The weights of a layer (of each repeated scope; what lies between the layers by stretches) become two flat
// states, one of matrices and one of vectors: one axis, padded so that it falls into equal pieces for all
// ranks. What each rank holds depends on the mode (R ranks; N nodes of L ranks):
//
//                 weights read by the model     trained weights (f32) and moments   accumulated gradients
//   ddp           all                           all                                 all
//   zero1         all (replica)                 1/R                                 all; one micro-batch: 1/R
//   zero2         all (replica)                 1/R                                 1/R
//   zero3         1/R                           1/R                                 1/R
//   zero3_local   1/L (replica)                 1/R                                 1/L; one micro-batch: 1/R
//
// (Rajbhandari et al. 2020, arXiv:1910.02054; zero3_local keeps the gathering of weights inside a node as
// Wang et al. 2023, arXiv:2306.10209, do with their secondary shards.) A replica has the type in which the
// model computes, f32 or bf16; where it would equal the trained weights there is none. The graph "replicate"
// makes it, after every update and when trained weights have been loaded.
//
// In the graph "gradient" the weights of a layer are gathered at their first use and again in the backward
// part, as one collective each, and the gradients of a layer are reduced as one when the last of them is
// known.
#pragma once

#include <string>
#include <vector>

#include "graph/builder.h"
#include "graph/pipeline.h"

namespace kumi {

Module shard(Module module, const PlanOptions& options);

// Is the training state of these options flat and on a mesh? With a single rank only if its weights are
// quantized.
bool is_sharded(const PlanOptions& options);

// The state that the model reads in place of a flat state of weights, in the type in which it computes.
std::string replica_name(const std::string& flat_state);

// A collective that the optimizer has to build: its op and the group it runs over.
struct GradientReduction {
  std::string op;
  MeshGroup group;
};
// How gradients are reduced, one reduction after the other: in each run of "gradient", and once a step in
// "update", before they are used. With one micro-batch a step all is in "gradient", where it overlaps with
// the backward pass.
std::vector<GradientReduction> micro_batch_reductions(const PlanOptions& options);
std::vector<GradientReduction> step_reductions(const PlanOptions& options);
// A collective over the group of the mesh; the values as they are if that is a single rank, unless there is
// to be a node even then.
std::vector<ValueId> collective(GraphBuilder& builder, const Mesh& mesh, const std::string& op,
                                MeshGroup group, const std::vector<ValueId>& values,
                                const std::string& name = "", bool even_alone = false);

}  // namespace kumi
