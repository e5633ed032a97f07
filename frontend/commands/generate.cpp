// `kumi generate`: continues a text with a trained model.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>

#include "frontend/commands/commands.h"
#include "frontend/generate.h"
#include "frontend/human.h"
#include "frontend/model_file.h"
#include "frontend/stop_signals.h"
#include "frontend/text_corpus.h"
#include "frontend/tokenizer.h"
#include "graph/text.h"
#include "runtime/checkpoint.h"
#include "runtime/measure_machine.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kWindowStep =
    64;  // windows are multiples, so that most calls find their kernels in the cache

struct GenerateOptions {
  std::string checkpoint, prompt, tokenizer, device = "cpu";
  int64_t max_tokens = 100;
  Sampling sampling;
  uint64_t seed = 0;
  bool verbose = false;
};

// The newest valid checkpoint of a run's folder, or a checkpoint's own folder.
Checkpoint find_checkpoint(const fs::path& path) {
  std::error_code failure;
  if (!fs::exists(path, failure)) throw Error("there is no such run or checkpoint").at({path});
  if (fs::exists(path / "training.json", failure)) return open_checkpoint(path);
  const fs::path below = path / "checkpoints";
  const auto warn = [](const std::string& line) { std::cerr << "kumi: warning: " << line << "\n"; };
  std::optional<Checkpoint> found = latest_checkpoint(fs::is_directory(below, failure) ? below : path, warn);
  if (!found)
    throw Error("there is no checkpoint here")
        .at({path})
        .expected("a run's folder with checkpoints/, or a checkpoint step-NNNNNNNN");
  return *found;
}

Tokenizer open_tokenizer(const GenerateOptions& options, const Checkpoint& checkpoint) {
  if (!options.tokenizer.empty()) return Tokenizer::load(options.tokenizer);
  if (!checkpoint.info.tokenizer_file.empty()) return Tokenizer::load(checkpoint.tokenizer());
  throw Error("the checkpoint has no tokenizer: it was not trained on text")
      .at({checkpoint.path})
      .hint("give one with --tokenizer FILE");
}

// "60 tokens, 512 tokens/s, prompt of 12 tokens in 14 ms, 43% of the memory's limit (...)"
void print_speed(const Generator& generator, Device& device) {
  const GenerationStatistics& statistics = generator.statistics();
  char text[160];
  std::snprintf(text, sizeof text,
                "%lld tokens after the first, %.1f tokens/s, prompt of %lld tokens in %.1f ms",
                static_cast<long long>(statistics.tokens), statistics.tokens_per_second(),
                static_cast<long long>(statistics.prompt_tokens), 1e3 * statistics.prompt_seconds);
  std::cerr << "kumi: " << text;
  if (statistics.tokens > 0) {
    const auto bytes = static_cast<double>(generator.weight_bytes());
    const double bandwidth = measure_read_bandwidth(device, generator.weight_bytes());
    std::snprintf(text, sizeof text, ", %.0f%% of what reading the weights allows (%s a token at %.1f GB/s)",
                  100 * statistics.tokens_per_second() * bytes / bandwidth,
                  bytes_text(generator.weight_bytes()).c_str(), 1e-9 * bandwidth);
    std::cerr << text;
  }
  std::cerr << "\n";
}

int generate(const GenerateOptions& options) {
  check(options.sampling);
  if (const std::optional<size_t> offset = find_invalid_utf8(options.prompt))
    throw Error(concat("the prompt is not UTF-8 at byte ", *offset));
  const Checkpoint checkpoint = find_checkpoint(options.checkpoint);
  const Tokenizer tokenizer = open_tokenizer(options, checkpoint);
  std::vector<int32_t> prompt = tokenizer.encode(options.prompt);
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (int32_t id : prompt) text += decoder.push(id);
  // Documents are separated by eos, so a text begins after one.
  if (prompt.empty()) prompt.push_back(std::max(tokenizer.eos_id(), 0));

  const int64_t needed =
      std::min(checkpoint.info.seq, static_cast<int64_t>(prompt.size()) + options.max_tokens);
  const int64_t window =
      std::min(checkpoint.info.seq, (needed + kWindowStep - 1) / kWindowStep * kWindowStep);
  std::unique_ptr<Device> device = open_device(options.device);
  Generator generator(load_model(checkpoint.model(), checkpoint.info.settings), window, checkpoint.weights(),
                      *device);
  if (!generator.why_no_cache().empty())
    std::cerr << "kumi: note: every token computes the whole window, as there can be no cache: "
              << generator.why_no_cache() << "\n";
  if (tokenizer.vocab_size() > generator.vocab())
    throw Error(
        concat("the tokenizer has ", tokenizer.vocab_size(), " pieces, the model knows ", generator.vocab()))
        .hint("it is not the tokenizer that the model was trained with");

  GenerationOptions generation;
  generation.max_tokens = options.max_tokens;
  generation.sampling = options.sampling;
  generation.seed = options.seed;
  generation.end = tokenizer.eos_id();
  generation.never = {tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.pad_id()};
  generation.vocab = tokenizer.vocab_size();
  generation.should_stop = StopSignals::requested;
  const StopSignals signals;
  std::cout << text << std::flush;
  const bool finished = generator.run(std::move(prompt), generation,
                                      [&](int32_t id) { std::cout << decoder.push(id) << std::flush; });
  std::cout << decoder.finish() << "\n" << std::flush;
  if (options.verbose || isatty(STDERR_FILENO) != 0) print_speed(generator, *device);
  return finished ? kExitSuccess : kExitInterrupted;
}

}  // namespace

void add_generate_command(CLI::App& app, CommandAction* run) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Continues a text with a trained model");
  command
      ->add_option("CHECKPOINT", options->checkpoint,
                   "a run's folder (its newest checkpoint) or a checkpoint's")
      ->required();
  command->add_option("PROMPT", options->prompt, "the beginning of the text; of a long one the end counts")
      ->required();
  command->add_option("--max-tokens", options->max_tokens, "tokens to add at most; default 100")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  command->add_option("--temperature", options->sampling.temperature,
                      "divides the logits; default 1, 0: always the likeliest token");
  command->add_option("--top-p", options->sampling.top_p,
                      "chooses among the likeliest tokens with this sum of probabilities; default 1");
  command->add_option("--seed", options->seed,
                      "of the choices; the same seed gives the same text; default 0");
  command->add_option("--tokenizer", options->tokenizer, "a SentencePiece model, instead of the checkpoint's")
      ->type_name("FILE");
  command->add_option("--device", options->device, "default cpu");
  command->add_flag("--verbose", options->verbose,
                    "prints the speed on standard error, as is done on a terminal");
  command->footer(
      "Example: kumi generate runs/plamo-tiny 'The Debian system' --max-tokens 60 --temperature 0.8 --top-p "
      "0.9");
  command->callback([run, options] { *run = [options] { return generate(*options); }; });
}

}  // namespace kumi
