// What names may look like: values and sizes are identifiers of the language, other names any text.
#pragma once

#include <string>
#include <string_view>

namespace kumi {

// A letter or '_', then letters, digits and '_': the language's identifiers.
bool is_identifier(std::string_view text);
// Identifiers joined by dots; after a dot a digit may stand first: "h", "grad.h.12".
bool is_value_name(std::string_view text);
// The value name nearest to any text: other characters become '_'.
std::string to_value_name(std::string_view text);

// Makes equal layers' scopes equal: "model.layers.layers.7.mlp" -> "model.layers.layers.*", and the number
// in `layer` (if not null). A scope without a number stays as it is.
std::string fold_layer(const std::string& scope, std::string* layer = nullptr);

// Not empty, UTF-8, no control characters: what a state, graph, input or output may be called.
bool is_plain_name(std::string_view text);

}  // namespace kumi
