#include "frontend/training_data.h"

#include <xxhash.h>

#include <cmath>
#include <cstdio>

#include "frontend/files.h"
#include "frontend/human.h"
#include "frontend/tokenize_corpus.h"
#include "runtime/host_tensor.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

// All that a tokenizer trained on the sources depends on: options, and each file's path, size and time.
std::string training_key(const std::vector<TextSource>& sources, const TokenizerTraining& options) {
  std::string text = concat("kumi tokenizer 1\n", options.vocab_size, " ", options.character_coverage, " ",
                            options.input_sentence_size, " ", options.seed, "\n");
  for (const TextSource& source : sources) {
    text += concat(source.name, " ", to_string(source.rule), " ", source.blank_lines, "\n");
    for (const fs::path& path : expand_paths(source)) {
      std::error_code failure;
      text += concat(fs::absolute(path).string(), " ", fs::file_size(path, failure), " ",
                     fs::last_write_time(path, failure).time_since_epoch().count(), "\n");
    }
  }
  char key[17];
  std::snprintf(key, sizeof key, "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
  return key;
}

Tokenizer open_tokenizer(const Recipe& recipe, const DataRequest& request) {
  if (!request.tokenizer.empty()) return Tokenizer::load(request.tokenizer);
  if (!recipe.tokenizer.empty()) return Tokenizer::load(recipe.tokenizer);
  TokenizerTraining options = recipe.tokenizer_training;
  if (options.vocab_size == 0) options.vocab_size = static_cast<int>(request.vocab);
  make_directories(recipe.cache);
  const fs::path model = recipe.cache / concat("tokenizer-", training_key(recipe.sources, options), ".model");
  if (fs::exists(model)) {
    try {
      return Tokenizer::load(model);
    } catch (const Error& error) {
      if (request.log) request.log(concat("training the tokenizer again: ", error.what()));
    }
  } else if (request.log) {
    request.log(concat("training a tokenizer of ", with_thousands(options.vocab_size), " pieces"));
  }
  return Tokenizer::train(recipe.sources, options, model);
}

void describe_text(const Recipe& recipe, const std::vector<TokenFile>& files, TrainingData* data) {
  double sum = 0;
  for (double weight : recipe.weights) sum += weight;
  for (size_t i = 0; i < files.size(); ++i) {
    char share[32];
    std::snprintf(share, sizeof share, "%.3g%%", 100 * recipe.weights[i] / sum);
    data->tokens += files[i].token_count();
    data->description += concat(i == 0 ? "" : ", ", recipe.sources[i].name, " ",
                                with_thousands(files[i].token_count()), " tokens ", share);
  }
}

}  // namespace

std::vector<int64_t> batches_shape(const fs::path& path) {
  SafetensorsFile file(path);
  const TensorView& tokens = file.tensor("tokens");
  if (tokens.shape.size() != 3 || tokens.dtype != DType::I32)
    throw Error(concat("the tensor tokens is ", to_string(tokens.dtype), to_string(tokens.shape)))
        .at({path})
        .expected("i32 [steps, batch, seq]");
  return tokens.shape;
}

TrainingData open_training_data(const Recipe& recipe, const DataRequest& request) {
  TrainingData data;
  if (!recipe.batches.empty()) {
    auto batches =
        std::make_unique<SafetensorsBatches>(recipe.batches, request.part, request.batch, request.vocab);
    if (batches->seq() != request.seq)
      throw Error(concat("the sequences have ", batches->seq(), " tokens"))
          .at({recipe.batches})
          .expected(concat(request.seq, ", the recipe's data.sequence_length"));
    data.tokens = batches->steps() * batches->file_batch() * batches->seq();
    data.description = concat(recipe.batches.string(), ", ", batches->steps(), " steps of [",
                              batches->file_batch(), ", ", batches->seq(), "]");
    data.batches = std::move(batches);
    return data;
  }
  data.tokenizer = open_tokenizer(recipe, request);
  if (data.tokenizer->vocab_size() > request.vocab)
    throw Error(concat("the tokenizer has ", data.tokenizer->vocab_size(),
                       " pieces, the model takes ids below ", request.vocab))
        .at({recipe.file})
        .hint(concat("set model.vocab=", data.tokenizer->vocab_size()));
  make_directories(recipe.cache);
  std::vector<TokenFile> files =
      prepare_token_files(*data.tokenizer, recipe.sources, recipe.cache, request.log);
  describe_text(recipe, files, &data);
  data.unigram_entropy = unigram_entropy(files, recipe.weights);
  TextBatchesOptions options;
  options.batch = request.batch;
  options.seq = request.seq;
  options.weights = recipe.weights;
  options.seed = recipe.data_seed;
  options.part = request.part;
  data.batches = std::make_unique<Prefetcher>(std::make_unique<TextBatches>(std::move(files), options));
  return data;
}

}  // namespace kumi
