// Text from a trained model, token by token.
//
// The plan is made of the model's forward graph with its logits as only output, for one sequence: the
// prompt goes through it in chunks, then every new token by itself, since the keys and values of those
// before it are kept (graph/passes/decode.h). A model for which that cannot be done computes its whole window
// anew for each token, filled up behind with any token: attention is causal, so what stands behind a position
// does not reach it.
//
// A text that outgrows the window goes on with the last half of the window's tokens, from position 0; so the
// window is computed anew once in half its length, not for every token. Either way of computing the logits
// gives the same text, but for rounding.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "frontend/sampling.h"
#include "graph/logits_only.h"
#include "runtime/executor.h"
#include "runtime/stored_tensors.h"

namespace kumi {

struct GenerationOptions {
  int64_t max_tokens = 100;
  Sampling sampling;
  uint64_t seed = 0;
  int32_t end = -1;                   // the token that ends the text; -1: none
  std::vector<int32_t> never;         // tokens that are not chosen (they stand for no text)
  int32_t vocab = 0;                  // tokens below this are chosen; 0: all that the model knows
  std::function<bool()> should_stop;  // asked before every token; may be null
};

// Of the last run.
struct GenerationStatistics {
  int64_t prompt_tokens = 0;  // of the prompt, in the window
  double prompt_seconds = 0;  // until the first token could be chosen
  int64_t tokens = 0;         // computed after that
  double seconds = 0;         // for these

  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};

class Generator {
 public:
  // Plans the model for a window of `window` tokens and loads its weights. `device` must outlive the
  // generator. Without `use_cache` every token computes the window anew. Throws Error as logits_only() does,
  // and for a model that is not planned for one sequence of `window` tokens.
  Generator(Module module, int64_t window, const StoredTensors& weights, Device& device,
            bool use_cache = true);

  // Continues `prompt`, which is not empty, calling `emit` with each new token; the end token is not emitted.
  // Of what is longer than the window the last part counts. The same arguments give the same tokens.
  // Returns false if it was stopped.
  bool run(std::vector<int32_t> prompt, const GenerationOptions& options,
           const std::function<void(int32_t)>& emit);

  // What follows a text of at most `window` tokens: a logit for each token that the model knows. A text that
  // begins with that of the last call costs what is new in it.
  std::vector<float> next_logits(std::span<const int32_t> text);

  // Tokens that the model knows.
  int64_t vocab() const { return vocab_; }
  // Why there is no cache, in one line; empty if there is one.
  const std::string& why_no_cache() const { return why_no_cache_; }
  const GenerationStatistics& statistics() const { return statistics_; }
  // Of the weights that every token reads whole: all but tables that rows are picked from.
  int64_t weight_bytes() const;

 private:
  bool has_cache() const { return chunk_ > 0; }
  void check_plan() const;
  void run_piece(std::span<const int32_t> text);
  std::vector<float> read_logits(int64_t row) const;

  std::unique_ptr<Executor> executor_;
  std::string why_no_cache_;
  int64_t window_ = 0;
  int64_t chunk_ = 0;  // tokens of one run of `prefill`; 0: there is no cache
  int64_t vocab_ = 0;
  DType dtype_ = DType::F32;
  std::vector<int32_t> cached_;  // the tokens whose keys and values the cache holds, from position 0
  GenerationStatistics statistics_;
};

}  // namespace kumi
