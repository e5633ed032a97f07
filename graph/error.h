// The one error type of the library, and what it carries.
//
// An error says what happened, where (file, line, column, node, rank), what was expected, and
// what to do. Code that throws fills in what it knows; callers add context on the way up
// (`catch (Error& e) { e.while_doing("fusing group 12"); throw; }`). Only `main` prints it.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace kumi {

// Joins its arguments with operator<<: concat("layer ", 3, ": ", name).
template <typename... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// "a, b, c" for messages; `if_empty` if there is nothing.
std::string joined(const std::vector<std::string>& words, const std::string& if_empty = "");

// A place in a file of text. Line and column count from 1; line 0 means "the file as a whole".
struct SourceLocation {
  std::string file;
  int line = 0;
  int column = 0;

  bool operator==(const SourceLocation&) const = default;
  bool known() const { return !file.empty(); }
};

// Prints "file:line:column", leaving out what is not known.
std::string to_string(const SourceLocation& location);

class Error : public std::exception {
 public:
  explicit Error(std::string what_happened);

  // Each returns *this, so that an error can be built in one expression:
  //   throw Error("unknown op 'matmull'").at(location).hint("did you mean 'matmul'?");
  Error& at(SourceLocation location);    // a file, or a place in one
  Error& source_line(std::string line);  // the text of that line, printed with a caret
  Error& node(std::string name);         // node of the graph
  Error& rank(int rank);                 // rank of the job
  Error& expected(std::string what);     // what would have been right
  Error& hint(std::string what);         // what to do
  Error& while_doing(std::string what);  // context, innermost first
  Error& also(Error other);              // a further, independent error of the same run

  const std::string& what_happened() const { return what_happened_; }
  const SourceLocation& location() const { return location_; }
  size_t count() const { return 1 + others_.size(); }

  // The whole message as shown to the user; may have several lines, without a final newline.
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  void format();

  std::string what_happened_;
  SourceLocation location_;
  std::string source_line_;
  std::string node_;
  int rank_ = -1;
  std::string expected_;
  std::string hint_;
  std::vector<std::string> context_;
  std::vector<Error> others_;
  std::string text_;
};

// Exit codes of the `kumi` command, documented in the README.
enum ExitCode { kExitSuccess = 0, kExitError = 1, kExitUsage = 2, kExitInterrupted = 130 };

// "did you mean 'x'?" for the candidate nearest to `word` by edit distance, or "" if none is near.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace kumi
