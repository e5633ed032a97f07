// Text sources: files, directories and patterns, read as a stream of documents.
//
// A source names plain or gzip'd UTF-8 text and says where one document ends and the next begins.
// Reading streams: only the current document is in memory. Text is checked as it is read; line
// ends become "\n" (from "\r\n"), a byte order mark is dropped, lines of only white space become
// empty, and a document loses the empty lines and the line end around it; a document without any
// text is left out.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kumi {

// How a file falls into documents.
enum class DocumentRule {
  PER_FILE,         // one file, one document
  PER_LINE,         // every line with text is a document
  PER_BLANK_LINES,  // `blank_lines` or more lines without text end a document
  PER_SECTION,      // an unindented line alone between blank lines is a heading and begins a document;
                    // a heading directly below a heading stays with it (manuals, README files)
};

// The names in recipes: "file", "line", "blank_lines", "section".
const char* to_string(DocumentRule rule);
std::optional<DocumentRule> parse_document_rule(std::string_view name);

struct TextSource {
  std::string name;                // for messages and cache file names: letters, digits, "-_."
  std::vector<std::string> paths;  // files, directories (all files below), patterns ("data/*.txt.gz")
  DocumentRule rule = DocumentRule::PER_BLANK_LINES;
  int blank_lines = 1;  // for PER_BLANK_LINES, at least 1
};

// The files of a source, sorted and without repetition. Hidden files of directories are skipped.
// Throws Error if a path or pattern matches nothing.
std::vector<std::filesystem::path> expand_paths(const TextSource& source);

// Calls `document` for every document of the source, in order; the text is valid during the call.
// Throws Error naming file and byte offset (in the unpacked text) for text that is not UTF-8, and
// the file for a damaged or truncated gzip stream.
void for_each_document(const TextSource& source, const std::function<void(std::string_view)>& document);

// The same for one file.
void for_each_document(const std::filesystem::path& file, const TextSource& source,
                       const std::function<void(std::string_view)>& document);

}  // namespace kumi
