// The data of a recipe: text made into tokens once, or ready-made batches.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "frontend/recipe.h"
#include "frontend/tokenizer.h"
#include "runtime/data_loader.h"

namespace kumi {

struct TrainingData {
  std::unique_ptr<BatchSource> batches;
  std::optional<Tokenizer> tokenizer;  // of text
  int64_t tokens = 0;                  // in all sources, or in the file
  // Cross-entropy in nats of a model that knows only how often each token occurs in the mix; of text.
  std::optional<double> unigram_entropy;
  std::string description;  // for people: "en 412,000 tokens 88%, ja 390,000 tokens 12%"
};

struct DataRequest {
  int64_t batch = 1;  // sequences of this rank
  int64_t seq = 1;
  int64_t vocab = 0;  // ids that the model takes: [0, vocab)
  RankOfRanks part = {};
  std::filesystem::path tokenizer;  // instead of the recipe's, when a run goes on; "": the recipe's
  std::function<void(const std::string&)> log;  // a line for people about work that takes time
};

// Trains the tokenizer and tokenizes the text, or finds both in the recipe's cache. Throws Error for
// text or batches that cannot be read, and for a tokenizer with more ids than the model takes.
TrainingData open_training_data(const Recipe& recipe, const DataRequest& request);

// Batch and sequence length of the recipe's batches file: [steps, batch, seq] of `tokens`.
std::vector<int64_t> batches_shape(const std::filesystem::path& path);

}  // namespace kumi
