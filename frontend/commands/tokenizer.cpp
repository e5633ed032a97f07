// `kumi tokenizer`: trains a tokenizer, and shows what one does.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <iostream>
#include <iterator>
#include <memory>

#include "frontend/commands/commands.h"
#include "frontend/files.h"
#include "frontend/human.h"
#include "frontend/tokenizer.h"
#include "graph/error.h"

namespace kumi {
namespace {

struct TokenizerOptions {
  std::vector<std::string> sources;
  std::string documents = "blank_lines", out, model;
  TokenizerTraining training;
  std::optional<std::string> text;
  std::vector<std::string> ids;
};

std::string standard_input() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

int train_tokenizer(const TokenizerOptions& options) {
  check_output_file(options.out);
  TextSource source;
  source.name = "text";
  source.paths = options.sources;
  source.rule = *parse_document_rule(options.documents);
  const Tokenizer tokenizer = Tokenizer::train({source}, options.training, options.out);
  std::cout << options.out << ": " << with_thousands(tokenizer.vocab_size()) << " pieces\n";
  return kExitSuccess;
}

int encode(const TokenizerOptions& options) {
  const Tokenizer tokenizer = Tokenizer::load(options.model);
  std::string line;
  for (int32_t id : tokenizer.encode(options.text ? *options.text : standard_input()))
    line += (line.empty() ? "" : " ") + std::to_string(id);
  std::cout << line << "\n";
  return kExitSuccess;
}

int32_t parse_id(const std::string& text) {
  int32_t id = 0;
  auto [stop, failure] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (failure != std::errc() || stop != text.data() + text.size())
    throw Error(concat("'", text, "' is not a token id")).expected("whole numbers, with white space between");
  return id;
}

int decode(const TokenizerOptions& options) {
  const Tokenizer tokenizer = Tokenizer::load(options.model);
  std::istringstream words(options.ids.empty() ? standard_input() : "");
  std::vector<int32_t> ids;
  ids.reserve(options.ids.size());
  for (const std::string& text : options.ids) ids.push_back(parse_id(text));
  for (std::string word; words >> word;) ids.push_back(parse_id(word));
  std::cout << tokenizer.decode(ids);
  if (isatty(STDOUT_FILENO) != 0) std::cout << "\n";
  return kExitSuccess;
}

}  // namespace

void add_tokenizer_command(CLI::App& app, CommandAction* run) {
  auto options = std::make_shared<TokenizerOptions>();
  CLI::App* command = app.add_subcommand("tokenizer", "Trains and tries tokenizers (SentencePiece)");
  command->require_subcommand(1);
  command->footer("Example: kumi tokenizer encode text.model 'Hello'");

  CLI::App* train = command->add_subcommand("train", "Trains a tokenizer on text");
  train->add_option("SOURCE", options->sources, "text, plain or gzip'd: files, folders, patterns")
      ->required();
  train->add_option("--vocab-size", options->training.vocab_size, "number of pieces")
      ->required()
      ->check(CLI::Range(1, 1 << 24));
  train->add_option("--out", options->out, "the model to write")->required()->type_name("FILE");
  train
      ->add_option("--documents", options->documents,
                   "how a file falls into documents: file, line, blank_lines (default) or section")
      ->check(CLI::IsMember({"file", "line", "blank_lines", "section"}));
  train
      ->add_option("--coverage", options->training.character_coverage,
                   "share of the text's characters that get pieces of their own; default 0.9995, the rest is "
                   "spelt in bytes")
      ->check(CLI::Range(0.9, 1.0));
  train->footer("Example: kumi tokenizer train 'text/*.txt.gz' --vocab-size 8000 --out text.model");
  train->callback([run, options] { *run = [options] { return train_tokenizer(*options); }; });

  CLI::App* encode_command = command->add_subcommand("encode", "Prints a text's token ids");
  encode_command->add_option("MODEL", options->model, "a SentencePiece model")->required();
  encode_command->add_option("TEXT", options->text, "the text; without it that of standard input");
  encode_command->footer("Example: kumi tokenizer encode text.model 'Hello'");
  encode_command->callback([run, options] { *run = [options] { return encode(*options); }; });

  CLI::App* decode_command = command->add_subcommand("decode", "Prints the text of token ids");
  decode_command->add_option("MODEL", options->model, "a SentencePiece model")->required();
  decode_command->add_option("IDS", options->ids, "the ids; without them those of standard input");
  decode_command->footer(
      "The text is written as it is, without a line end (but on a terminal).\n"
      "Example: kumi tokenizer encode text.model < a.txt | kumi tokenizer decode text.model > b.txt");
  decode_command->callback([run, options] { *run = [options] { return decode(*options); }; });
}

}  // namespace kumi
