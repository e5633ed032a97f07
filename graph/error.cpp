#include "graph/error.h"

#include <algorithm>

namespace kumi {

std::string joined(const std::vector<std::string>& words, const std::string& if_empty) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return words.empty() ? if_empty : text;
}

std::string to_string(const SourceLocation& location) {
  std::string text = location.file;
  if (location.line > 0) {
    text += ":" + std::to_string(location.line);
    if (location.column > 0) text += ":" + std::to_string(location.column);
  }
  return text;
}

Error::Error(std::string what_happened) : what_happened_(std::move(what_happened)) {
  format();
}

Error& Error::at(SourceLocation location) {
  location_ = std::move(location);
  format();
  return *this;
}

Error& Error::source_line(std::string line) {
  source_line_ = std::move(line);
  format();
  return *this;
}

Error& Error::node(std::string name) {
  node_ = std::move(name);
  format();
  return *this;
}

Error& Error::rank(int rank) {
  rank_ = rank;
  format();
  return *this;
}

Error& Error::expected(std::string what) {
  expected_ = std::move(what);
  format();
  return *this;
}

Error& Error::hint(std::string what) {
  hint_ = std::move(what);
  format();
  return *this;
}

Error& Error::while_doing(std::string what) {
  context_.push_back(std::move(what));
  format();
  return *this;
}

Error& Error::also(Error other) {
  others_.push_back(std::move(other));
  format();
  return *this;
}

void Error::format() {
  std::string text;
  if (location_.known()) text += to_string(location_) + ": ";
  if (rank_ >= 0) text += concat("rank ", rank_, ": ");
  text += what_happened_;
  if (!source_line_.empty()) {
    text += "\n  " + source_line_;
    if (location_.column > 0) {
      // Tabs of the source line are kept so that the caret stands under its column.
      std::string indent;
      for (int i = 0; i + 1 < location_.column; ++i)
        indent += i < static_cast<int>(source_line_.size()) && source_line_[i] == '\t' ? '\t' : ' ';
      text += "\n  " + indent + "^";
    }
  }
  if (!node_.empty()) text += "\n  node: " + node_;
  if (!expected_.empty()) text += "\n  expected: " + expected_;
  if (!hint_.empty()) text += "\n  hint: " + hint_;
  for (const std::string& context : context_) text += "\n  while " + context;
  for (const Error& other : others_) text += "\n" + other.text_;
  text_ = std::move(text);
}

namespace {

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  constexpr size_t kLongestWord = 200;  // the distance is quadratic; input may be garbage
  if (word.size() > kLongestWord) return "";
  size_t best = word.size() / 3 + 1;  // a third of the letters may be wrong
  const std::string* nearest = nullptr;
  for (const std::string& candidate : candidates) {
    if (candidate.size() > kLongestWord) continue;
    size_t distance = edit_distance(word, candidate);
    if (distance <= best && (nearest == nullptr || distance < best)) {
      best = distance;
      nearest = &candidate;
    }
  }
  return nearest == nullptr ? "" : "did you mean '" + *nearest + "'?";
}

}  // namespace kumi
