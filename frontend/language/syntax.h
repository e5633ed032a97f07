// The syntax tree: what the parser makes of a text, before anything means anything.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace kumi::language {

struct Place {
  int line = 0;
  int column = 0;
};

struct Expression;

// `name = value` or `value` in a call's parentheses.
struct Argument {
  std::string name;  // "" if positional
  Place place;
  std::vector<Expression> value;  // exactly one
};

struct Expression {
  enum Kind : uint8_t {
    kInteger,    // integer
    kFloat,      // number
    kString,     // text, with {interpolations} in a source
    kBool,       // integer: 0 or 1
    kName,       // text
    kNothing,    // _ : an optional operand left out
    kCall,       // text: the function; arguments
    kList,       // children
    kUnary,      // text: - not; children: {operand}
    kBinary,     // text: the operator; children: {left, right}
    kNamedSize,  // text: the name; children: {size}, as in hidden=5120
  };
  Kind kind = kInteger;
  Place place;
  std::string text;
  int64_t integer = 0;
  double number = 0;
  std::vector<Expression> children;
  std::vector<Argument> arguments;
};

struct TypeSyntax {
  std::string dtype;
  Place place;
  std::vector<Expression> sizes;
};

// `at 64`, `at "state" + 64 by [256, 1]`: where a value lives.
struct PlaceInMemory {
  std::string state;
  int64_t offset = 0;
  std::vector<int64_t> strides;
};

// What stands left of '=': a name, perhaps with its type.
struct Target {
  std::string name;
  Place place;
  std::optional<TypeSyntax> type;
  std::optional<PlaceInMemory> memory;
};

// `from 12:3` or `from "file.kumi":12:3`.
struct Origin {
  std::string file;  // "": the one that `source` names
  int line = 0;
  int column = 0;
};

// `@ group 3 stream 1 from 12:3`
struct Annotations {
  int32_t group = -1;
  int32_t stream = 0;
  bool recomputed = false;
  std::optional<Origin> origin;
};

// `"name" [2, 3] = zeros`: a tensor of a flat state.
struct FlatTensorSyntax {
  std::string name;
  std::vector<Expression> sizes;
  Expression initializer;
};

struct Statement {
  enum Kind : uint8_t {
    kAssign,    // targets = value; a call without results has no targets
    kLet,       // name = value
    kSize,      // name [= value]
    kInput,     // targets with types
    kOutput,    // name [= value]; `text` in a dump may be any string
    kFunction,  // name(parameters): body, or value
    kReturn,    // value
    kRepeat,    // value times, as name in text: body
    kScope,     // text: body
    kIf,        // value: body else otherwise
    // Of dumps.
    kSource,  // text: the file that origins are in
    kPasses,  // names
    kState,   // kind, text: the state's name, type, value: the initializer, state_offset, cut, tensors
    kMesh,    // mesh
    kGraph,   // name, arena_bytes, arena_lower_bound: body
  };
  Kind kind = kAssign;
  Place place;
  std::string name;
  std::string text;
  std::vector<Target> targets;
  std::vector<std::string> names;
  std::optional<Expression> value;
  std::optional<Expression> label;  // of repeat and scope: a string
  std::optional<TypeSyntax> type;
  std::vector<Argument> parameters;  // value is empty where there is no default
  std::vector<Statement> body, otherwise;
  Annotations annotations;
  std::optional<int64_t> arena_bytes, arena_lower_bound, state_offset;
  std::vector<std::string> cut;
  std::vector<FlatTensorSyntax> tensors;
  int64_t nodes = 1, local = 1;
};

struct ModelSyntax {
  std::string name;
  Place place;
  std::vector<Argument> parameters;  // value is empty where there is no default
  std::vector<Statement> body;
};

}  // namespace kumi::language
