// Modules as protobuf: binary (.pb) and text format (.txtpb), schema in graph/graph.proto.
//
// Both are lossless, names of sizes and all annotations included. Reading trusts nothing: every
// enum, index, size and string is checked, then verify() (graph/pipeline.h) is run, so the ops must
// be registered. Damaged input throws Error with the file's name and the place in it
// ("graphs[0].nodes[12].operands[1]", for the text format also line and column).
#pragma once

#include <string>

#include "graph/graph.h"

namespace kumi {

std::string to_binary(const Module& module);
std::string to_text_format(const Module& module);

// `file` is for messages only.
Module from_binary(const std::string& bytes, const std::string& file);
Module from_text_format(const std::string& text, const std::string& file);

// Reads a .pb or .txtpb file. Throws Error if it cannot be read or is of neither kind.
Module read_module(const std::string& path);

}  // namespace kumi
