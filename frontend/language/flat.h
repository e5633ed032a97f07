// The flat subset of the language: a module as print.h prints it, taken as it stands.
#pragma once

#include "frontend/language/diagnostics.h"
#include "frontend/language/syntax.h"
#include "graph/graph.h"

namespace kumi::language {

// Whether the model is a dump: it has states and graphs instead of a source's statements.
bool is_flat(const ModelSyntax& model);

// Types and attributes that a line leaves out are filled in by the op's shape rule; those that it gives must
// agree with it. Errors go to `diagnostics`. The caller verifies the module.
Module read_flat(const ModelSyntax& model, Diagnostics& diagnostics);

}  // namespace kumi::language
