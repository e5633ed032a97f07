#include "frontend/text_corpus.h"

#include <glob.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <system_error>
#include <utility>

#include "graph/error.h"
#include "graph/text.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

struct RuleName {
  DocumentRule rule;
  const char* name;
};
constexpr RuleName kRuleNames[] = {{DocumentRule::PER_FILE, "file"},
                                   {DocumentRule::PER_LINE, "line"},
                                   {DocumentRule::PER_BLANK_LINES, "blank_lines"},
                                   {DocumentRule::PER_SECTION, "section"}};

// Bytes of the white space character that the text begins with, 0 if it begins with none. Besides
// ASCII's, the no-break and the ideographic space indent lines in plain text made from manuals.
size_t leading_space(std::string_view text) {
  constexpr std::string_view kNoBreakSpace = "\xC2\xA0";
  constexpr std::string_view kIdeographicSpace = "\xE3\x80\x80";
  if (text.empty()) return 0;
  if (std::strchr(" \t\r\v\f", text[0]) != nullptr && text[0] != '\0') return 1;
  if (text.starts_with(kNoBreakSpace)) return kNoBreakSpace.size();
  if (text.starts_with(kIdeographicSpace)) return kIdeographicSpace.size();
  return 0;
}

bool is_blank(std::string_view line) {
  while (size_t bytes = leading_space(line)) line.remove_prefix(bytes);
  return line.empty();
}

// A line of dashes or the like is an ornament, not a title.
bool may_be_heading(std::string_view line) {
  if (leading_space(line) > 0) return false;
  return std::any_of(line.begin(), line.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           static_cast<unsigned char>(c) >= 0x80;
  });
}

// Takes a file's lines and gives its documents.
class DocumentAssembler {
 public:
  DocumentAssembler(const TextSource& source, const std::function<void(std::string_view)>& document)
      : rule_(source.rule), blank_lines_(source.blank_lines), give_(document) {}

  void add_line(std::string_view line) {
    const bool blank = is_blank(line);
    if (candidate_) {
      const std::string heading = *std::exchange(candidate_, std::nullopt);
      if (blank && has_body_) end_document();
      append(heading);
      has_body_ = has_body_ || !blank;
    }
    if (blank) {
      ++blanks_;
    } else if (rule_ == DocumentRule::PER_SECTION && (blanks_ > 0 || at_start_) && may_be_heading(line)) {
      candidate_ = line;  // the next line decides
    } else {
      if (rule_ == DocumentRule::PER_BLANK_LINES && blanks_ >= blank_lines_) end_document();
      append(line);
      has_body_ = true;
      if (rule_ == DocumentRule::PER_LINE) end_document();
    }
    at_start_ = false;
  }

  void end_file() {
    if (candidate_) add_line("");
    end_document();
    at_start_ = true;
  }

 private:
  void append(std::string_view line) {
    if (!document_.empty()) document_.append(static_cast<size_t>(blanks_) + 1, '\n');
    blanks_ = 0;
    document_ += line;
  }

  void end_document() {
    if (!document_.empty()) give_(document_);
    document_.clear();
    blanks_ = 0;
    has_body_ = false;
  }

  const DocumentRule rule_;
  const int64_t blank_lines_;
  const std::function<void(std::string_view)>& give_;
  std::string document_;                  // without line end
  std::optional<std::string> candidate_;  // a line that is a heading if a blank one follows
  int64_t blanks_ = 0;                    // blank lines since the last text
  bool has_body_ = false;                 // the document has more than headings
  bool at_start_ = true;
};

struct CloseGzip {
  void operator()(gzFile file) const { gzclose_r(file); }
};
using GzipFile = std::unique_ptr<gzFile_s, CloseGzip>;

Error read_error(gzFile gzip, const fs::path& file) {
  int code = Z_OK;
  const char* message = gzerror(gzip, &code);
  std::string cause = code == Z_ERRNO       ? std::generic_category().message(errno)
                      : code == Z_BUF_ERROR ? "the gzip stream is truncated"
                                            : concat("the gzip stream is damaged (", message, ")");
  Error error("cannot read: " + cause);
  error.at({file.string()});
  return error;
}

// Calls `line` for every line, without its end, from plain or gzip'd text (zlib tells them apart).
void for_each_line(const fs::path& file, const std::function<void(std::string_view)>& line) {
  constexpr unsigned kChunkBytes = 1 << 18;
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (!fs::is_regular_file(file)) {
    std::error_code code;
    throw Error(fs::exists(file, code) ? "cannot read text: not a regular file" : "no such text file")
        .at({file.string()});
  }
  GzipFile gzip(gzopen(file.c_str(), "rb"));
  if (gzip == nullptr)
    throw Error("cannot open: " + std::generic_category().message(errno)).at({file.string()});
  gzbuffer(gzip.get(), kChunkBytes);

  int64_t offset = 0;  // of the current line in the unpacked text
  auto give = [&](std::string_view text, bool ended) {
    if (std::optional<size_t> bad = find_invalid_utf8(text))
      throw Error(concat("the text is not UTF-8 at byte ", offset + static_cast<int64_t>(*bad), " (0x",
                         std::hex, static_cast<int>(static_cast<unsigned char>(text[*bad])), ")"))
          .at({file.string()})
          .hint("convert it, for example with iconv -t UTF-8");
    const int64_t bytes = static_cast<int64_t>(text.size()) + (ended ? 1 : 0);
    if (offset == 0 && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
    if (text.ends_with('\r')) text.remove_suffix(1);
    line(text);
    offset += bytes;
  };
  std::string chunk(kChunkBytes, '\0');
  std::string unfinished;
  for (;;) {
    const int count = gzread(gzip.get(), chunk.data(), kChunkBytes);
    if (count < 0) throw read_error(gzip.get(), file);
    std::string_view rest(chunk.data(), static_cast<size_t>(count));
    for (size_t end; (end = rest.find('\n')) != std::string_view::npos; rest.remove_prefix(end + 1)) {
      if (unfinished.empty()) {
        give(rest.substr(0, end), true);
      } else {
        unfinished += rest.substr(0, end);
        give(unfinished, true);
        unfinished.clear();
      }
    }
    unfinished += rest;
    if (count < static_cast<int>(kChunkBytes)) {
      // A truncated stream first gives what it has; the error shows only here.
      int code = Z_OK;
      gzerror(gzip.get(), &code);
      if (code != Z_OK && code != Z_STREAM_END) throw read_error(gzip.get(), file);
      if (gzeof(gzip.get()) != 0) break;
    }
  }
  if (!unfinished.empty()) give(unfinished, false);
}

bool is_hidden(const fs::path& path) {
  return path.filename().string().starts_with(".");
}

void add_directory(const fs::path& directory, std::vector<fs::path>* files) {
  std::error_code code;
  fs::recursive_directory_iterator entry(directory, code);
  for (; !code && entry != fs::recursive_directory_iterator(); entry.increment(code)) {
    if (is_hidden(entry->path())) {
      entry.disable_recursion_pending();
    } else if (entry->is_regular_file(code)) {
      files->push_back(entry->path());
    }
  }
  if (code) throw Error("cannot read the directory: " + code.message()).at({directory.string()});
}

void add_pattern(const std::string& pattern, std::vector<fs::path>* files) {
  glob_t matches{};
  const int result = glob(pattern.c_str(), GLOB_BRACE | GLOB_TILDE, nullptr, &matches);
  std::vector<fs::path> found(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  globfree(&matches);
  if (result != 0 && result != GLOB_NOMATCH) throw Error(concat("cannot search for '", pattern, "'"));
  for (const fs::path& path : found) {
    if (fs::is_directory(path)) {
      add_directory(path, files);
    } else {
      files->push_back(path);
    }
  }
}

}  // namespace

const char* to_string(DocumentRule rule) {
  for (const RuleName& entry : kRuleNames)
    if (entry.rule == rule) return entry.name;
  return "unknown";
}

std::optional<DocumentRule> parse_document_rule(std::string_view name) {
  for (const RuleName& entry : kRuleNames)
    if (entry.name == name) return entry.rule;
  return std::nullopt;
}

std::vector<fs::path> expand_paths(const TextSource& source) {
  std::vector<fs::path> files;
  for (const std::string& path : source.paths) {
    const size_t before = files.size();
    std::error_code code;
    const fs::file_status status = fs::status(path, code);
    if (fs::is_directory(status)) {
      add_directory(path, &files);
    } else if (fs::exists(status)) {
      files.push_back(path);
    } else {
      add_pattern(path, &files);
    }
    if (files.size() == before) {
      const char* cause = fs::is_directory(status) ? "the directory has no files: '"
                                                   : "no file, directory or pattern matches '";
      throw Error(concat("text source '", source.name, "': ", cause, path, "'"));
    }
  }
  if (files.empty()) throw Error(concat("text source '", source.name, "' names no files"));
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

void for_each_document(const fs::path& file, const TextSource& source,
                       const std::function<void(std::string_view)>& document) {
  if (source.rule == DocumentRule::PER_BLANK_LINES && source.blank_lines < 1)
    throw Error(concat("text source '", source.name, "': blank_lines is ", source.blank_lines))
        .expected("at least 1");
  DocumentAssembler assembler(source, document);
  for_each_line(file, [&assembler](std::string_view line) { assembler.add_line(line); });
  assembler.end_file();
}

void for_each_document(const TextSource& source, const std::function<void(std::string_view)>& document) {
  for (const fs::path& file : expand_paths(source)) for_each_document(file, source, document);
}

}  // namespace kumi
