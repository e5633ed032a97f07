// From text sources to token files, once.
//
// Each source is tokenized into <cache>/<name>-<key>.tokens, where the key is a hash of the
// tokenizer, the document rule and the source's files (path, size, time of change); the next run
// finds the file and only maps it. A damaged file is made again.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "frontend/text_corpus.h"
#include "frontend/tokenizer.h"
#include "runtime/token_file.h"

namespace kumi {

// One token file a source, in order. Creates the cache directory. Documents are separated by eos
// (the tokenizer must have one). Several processes may prepare the same cache at once: one works,
// the others wait and reuse. `log`, if given, gets a line for people for each source that is
// tokenized, with the reason and the counts. Throws Error for unreadable text, and for a source
// without documents.
std::vector<TokenFile> prepare_token_files(const Tokenizer& tokenizer, const std::vector<TextSource>& sources,
                                           const std::filesystem::path& cache_directory,
                                           const std::function<void(const std::string&)>& log = {});

// The key of a source under a tokenizer, as above.
uint64_t token_file_key(const Tokenizer& tokenizer, const TextSource& source);

}  // namespace kumi
