// Errors in a source: gathered, so that one run shows several, each with its line and a caret.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "graph/error.h"

namespace kumi::language {

class Diagnostics {
 public:
  // `text` must outlive the object.
  Diagnostics(std::string file, std::string_view text) : file_(std::move(file)), text_(text) {}

  // Adds an error. One without a location, or with one in this file, gets the source line.
  void report(Error error);
  // The error at a place in this file.
  Error at(int line, int column, const std::string& what_happened) const;
  Error located(Error error) const;

  const std::string& file() const { return file_; }
  bool has_errors() const { return first_.has_value(); }
  // True when there are so many that more would not help.
  bool is_full() const { return first_ && first_->count() >= kMostErrors; }
  // Throws the errors, if there are any, in the order of their places.
  void throw_if_any() const {
    if (first_) throw *first_;
  }

  static constexpr size_t kMostErrors = 20;

 private:
  std::string file_;
  std::string_view text_;
  std::optional<Error> first_;
};

}  // namespace kumi::language
