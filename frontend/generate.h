// Text from a trained model, token by token.
//
// The plan is the model's forward graph with its logits as only output, for one sequence of a fixed
// length. For each new token the window of the last tokens is computed anew, filled up behind with any
// token: attention is causal, so what stands behind a position does not reach it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "frontend/sampling.h"
#include "graph/graph.h"
#include "runtime/executor.h"
#include "runtime/safetensors.h"

namespace kumi {

// The module with only the output `logits` and the inputs that it needs. Throws Error if it has no graph
// "forward" with such an output, or if it needs other inputs than `tokens`.
Module logits_only(Module module);

struct GenerationOptions {
  int64_t max_tokens = 100;
  Sampling sampling;
  uint64_t seed = 0;
  int32_t end = -1;                   // the token that ends the text; -1: none
  std::vector<int32_t> never;         // tokens that are not chosen (they stand for no text)
  int32_t vocab = 0;                  // tokens below this are chosen; 0: all that the model knows
  std::function<bool()> should_stop;  // asked before every token; may be null
};

class Generator {
 public:
  // Plans the model for a window of `window` tokens and loads its weights. `device` must outlive the
  // generator.
  Generator(Module module, int64_t window, const SafetensorsFile& weights, Device& device);

  // Continues `prompt`, which is not empty, calling `emit` with each new token; the end token is not emitted.
  // Of what is longer than the window the last part counts. The same arguments give the same tokens.
  // Returns false if it was stopped.
  bool run(std::vector<int32_t> prompt, const GenerationOptions& options,
           const std::function<void(int32_t)>& emit);

  // Tokens that the model knows.
  int64_t vocab() const { return vocab_; }

 private:
  std::vector<float> next_logits(std::span<const int32_t> tokens);

  std::unique_ptr<Executor> executor_;
  int64_t window_ = 0;
  int64_t vocab_ = 0;
  DType dtype_ = DType::F32;
};

}  // namespace kumi
