// Names and what they stand for while a source is elaborated.
//
// Frames nest as blocks do. A definition (parameter, size, let, function, input) is seen from its whole
// block and from everything inside it; a variable only from its own function, since its value depends
// on when it is read.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "frontend/language/syntax.h"
#include "frontend/language/value.h"

namespace kumi::language {

struct Frame;

struct Binding {
  enum State : uint8_t { kReady, kWaiting, kEvaluating };
  bool is_variable = false;
  State state = kReady;
  Value value;                             // when ready
  const Expression* definition = nullptr;  // of a let or parameter that waits
  const Statement* function = nullptr;
  Frame* home = nullptr;  // in which the definition is evaluated
  std::string scope;      // of the graph, where it is defined
  Place place;
  bool is_prelude = false;
};

struct Frame {
  Frame* parent = nullptr;
  bool hides_variables = false;  // variables of the frames outside are not seen from here
  std::map<std::string, Binding> names;
};

struct Found {
  Binding* binding = nullptr;
  bool is_hidden = false;  // a variable that must not be seen from here
};

inline Found find(Frame* frame, const std::string& name) {
  bool hidden = false;
  for (; frame != nullptr; frame = frame->parent) {
    auto found = frame->names.find(name);
    if (found != frame->names.end()) return {&found->second, hidden && found->second.is_variable};
    hidden |= frame->hides_variables;
  }
  return {};
}

inline std::vector<std::string> visible_names(const Frame* frame) {
  std::vector<std::string> names;
  for (; frame != nullptr; frame = frame->parent)
    for (const auto& entry : frame->names) names.push_back(entry.first);
  return names;
}

}  // namespace kumi::language
