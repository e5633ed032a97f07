#include "frontend/language/parser.h"

#include <algorithm>

#include "frontend/language/expression_parser.h"
#include "graph/names.h"
#include "graph/text.h"

namespace kumi::language {
namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  ModelSyntax model() {
    ModelSyntax model;
    try {
      const Token& word = peek();
      if (!is_name("model"))
        fail(word, concat("found ", spelled(word)), "a model: model NAME(parameters) { ... }");
      model.place = place(next());
      model.name = peek().kind == TokenKind::kString ? next().text : identifier("the model's name");
      if (accept("(")) model.parameters = parameters();
      model.body = block();
      if (peek().kind != TokenKind::kEnd)
        fail(peek(), concat("found ", spelled(peek()), " after the model"), "one model a file");
    } catch (const Abandon&) {
    }
    return model;
  }

 private:
  // `name, name = default)`: of a model or a function.
  std::vector<Argument> parameters() {
    std::vector<Argument> all;
    while (!accept(")")) {
      Argument parameter;
      parameter.place = place(peek());
      parameter.name = identifier("a parameter's name");
      if (accept("=")) parameter.value.push_back(sized_expression());
      for (const Argument& other : all)
        if (other.name == parameter.name)
          fail(peek(), concat("the parameter '", parameter.name, "' is given twice"), "each name once");
      all.push_back(std::move(parameter));
      if (!is(peek(), ")")) expect(",", "between parameters, or ')'");
    }
    return all;
  }

  std::vector<Statement> block() {
    Nesting nesting(*this);
    expect("{", "to begin the block");
    const Token open = tokens_[at_ - 1];
    std::vector<Statement> statements;
    while (!is(peek(), "}")) {
      if (peek().kind == TokenKind::kEnd)
        fail(open, "this block is not closed", "'}' before the end of the text");
      if (diagnostics_.is_full()) throw Abandon();
      const size_t begin = at_;
      try {
        statements.push_back(statement());
        end_statement();
      } catch (const Abandon&) {
        recover(begin);
      }
    }
    next();
    return statements;
  }

  void end_statement() {
    if (accept(";") || is(peek(), "}") || peek().starts_line || peek().kind == TokenKind::kEnd) return;
    fail(peek(), concat("found ", spelled(peek())), "the end of the statement: a new line or ';'");
  }

  // Skips to the next line that can begin a statement of the same block.
  void recover(size_t begin) {
    int depth = 0;
    for (size_t i = begin; i < at_; ++i) depth += is(tokens_[i], "{") ? 1 : is(tokens_[i], "}") ? -1 : 0;
    if (at_ == begin) depth += is(next(), "{") ? 1 : 0;
    while (peek().kind != TokenKind::kEnd) {
      if (is(peek(), "}")) {
        if (depth <= 0) return;
        --depth;
      } else if (is(peek(), "{")) {
        ++depth;
      } else if (depth <= 0 && peek().starts_line && peek().kind == TokenKind::kName) {
        return;
      }
      next();
    }
  }

  Statement statement() {
    Statement s;
    s.place = place(peek());
    terms_ = 0;
    // A word followed by one of these is a name, also if it is a keyword elsewhere.
    const bool is_target = is(peek(1), "=") || is(peek(1), ":") || is(peek(1), ",");
    if (peek().kind == TokenKind::kName && !is_target) {
      const std::string& word = peek().text;
      if (word == "let") return let(std::move(s));
      if (word == "size") return size(std::move(s));
      if (word == "input") return input(std::move(s));
      if (word == "output") return output(std::move(s));
      if (word == "fn") return function(std::move(s));
      if (word == "return") return returned(std::move(s));
      if (word == "repeat") return repeat(std::move(s));
      if (word == "scope") return scope(std::move(s));
      if (word == "if") return condition(std::move(s));
      if (word == "source") return source(std::move(s));
      if (word == "passes") return passes(std::move(s));
      if (word == "state") return state(std::move(s));
      if (word == "mesh") return mesh(std::move(s));
      if (word == "graph") return graph(std::move(s));
    }
    return assignment(std::move(s));
  }

  // Several of one kind in one statement (`size batch = 1, seq`) are statements of their own.
  Statement several(Statement s, std::vector<Statement> all) {
    if (all.size() == 1) return std::move(all[0]);
    s.kind = Statement::kScope;  // without a label: no scope, just these
    s.body = std::move(all);
    return s;
  }

  Statement let(Statement s) {
    next();
    s.kind = Statement::kLet;
    s.name = identifier("a name");
    expect("=", "and the value");
    s.value = expression();
    return s;
  }

  Statement size(Statement s) {
    next();
    std::vector<Statement> all;
    do {
      Statement one;
      one.kind = Statement::kSize;
      one.place = place(peek());
      one.name = identifier("a size's name");
      if (accept("=")) one.value = sized_expression();
      all.push_back(std::move(one));
    } while (accept(","));
    return several(std::move(s), std::move(all));
  }

  // input tokens, labels: i32[batch, seq]
  Statement input(Statement s) {
    next();
    s.kind = Statement::kInput;
    do {
      Target target;
      target.place = place(peek());
      target.name = identifier("an input's name");
      s.targets.push_back(std::move(target));
    } while (accept(","));
    expect(":", "and the inputs' type");
    s.type = type();
    return s;
  }

  // output logits, loss = cross_entropy(...)
  Statement output(Statement s) {
    next();
    std::vector<Statement> all;
    do {
      Statement one;
      one.kind = Statement::kOutput;
      one.place = place(peek());
      const bool is_string = peek().kind == TokenKind::kString;
      if (!is_string && peek().kind != TokenKind::kName)
        fail(peek(), concat("found ", spelled(peek())), "an output's name");
      const Token& name = next();
      one.name = name.text;
      if (accept("=")) {
        one.value = expression();
      } else if (is_string) {
        fail(peek(), concat("found ", spelled(peek())), "'=' and the output's value");
      } else {
        Expression value;
        value.kind = Expression::kName;
        value.place = place(name);
        value.text = name.text;
        one.value = std::move(value);
      }
      all.push_back(std::move(one));
    } while (accept(","));
    return several(std::move(s), std::move(all));
  }

  Statement function(Statement s) {
    next();
    s.kind = Statement::kFunction;
    s.name = identifier("the function's name");
    expect("(", "and the function's parameters");
    s.parameters = parameters();
    if (accept("="))
      s.value = expression();
    else
      s.body = block();
    return s;
  }

  Statement returned(Statement s) {
    next();
    s.kind = Statement::kReturn;
    s.value = expression();
    return s;
  }

  Statement repeat(Statement s) {
    next();
    s.kind = Statement::kRepeat;
    s.value = expression();
    if (accept_name("as")) s.name = identifier("the name of the counter");
    if (accept_name("in")) s.label = expression();
    s.body = block();
    return s;
  }

  Statement scope(Statement s) {
    next();
    s.kind = Statement::kScope;
    s.label = expression();
    s.body = block();
    return s;
  }

  Statement condition(Statement s) {
    Nesting nesting(*this);  // `else if` nests without a block
    next();
    s.kind = Statement::kIf;
    s.value = expression();
    s.body = block();
    if (accept_name("else")) {
      if (is_name("if"))
        s.otherwise.push_back(statement());
      else
        s.otherwise = block();
    }
    return s;
  }

  Statement source(Statement s) {
    next();
    s.kind = Statement::kSource;
    s.text = string("the source file's name");
    return s;
  }

  Statement passes(Statement s) {
    next();
    s.kind = Statement::kPasses;
    do s.names.push_back(identifier("a pass"));
    while (accept(","));
    return s;
  }

  // mesh 2, 4
  Statement mesh(Statement s) {
    next();
    s.kind = Statement::kMesh;
    s.nodes = integer("the number of nodes");
    expect(",", "and the ranks a node");
    s.local = integer("the number of ranks a node");
    return s;
  }

  // state weight "name": f32[4] = zeros at 64 cut node, cross_node holds "a" [2] = ones, "b" [2] = zeros from
  // 3:1
  Statement state(Statement s) {
    next();
    s.kind = Statement::kState;
    s.name = identifier("the kind of the state");
    s.text = string("the state's name");
    expect(":", "and the state's type");
    s.type = type();
    expect("=", "and the state's initializer");
    s.value = expression();
    if (accept_name("at")) s.state_offset = integer("a byte of the states' memory");
    if (accept_name("cut")) do
        s.cut.push_back(identifier("a group of the mesh"));
      while (accept(","));
    if (accept_name("holds")) do
        s.tensors.push_back(flat_tensor());
      while (accept(","));
    if (is_name("from")) s.annotations.origin = origin();
    return s;
  }

  FlatTensorSyntax flat_tensor() {
    FlatTensorSyntax tensor;
    tensor.name = string("a tensor's name");
    expect("[", "and the tensor's sizes");
    tensor.sizes = list("]");
    expect("=", "and the tensor's initializer");
    tensor.initializer = expression();
    return tensor;
  }

  // graph gradient arena 4096 lower_bound 4000 { ... }
  Statement graph(Statement s) {
    next();
    s.kind = Statement::kGraph;
    s.name = identifier("the graph's name");
    if (accept_name("arena")) s.arena_bytes = integer("the bytes of the arena");
    if (accept_name("lower_bound")) s.arena_lower_bound = integer("the bytes that are needed at least");
    s.body = block();
    return s;
  }

  Statement assignment(Statement s) {
    s.kind = Statement::kAssign;
    const bool is_call = is(peek(1), "(");
    if (peek().kind != TokenKind::kName)
      fail(peek(), concat("found ", spelled(peek())),
           "a statement: name = value, input, output, let, repeat, ...");
    if (!is_call) {
      do s.targets.push_back(target());
      while (accept(","));
      expect("=", "and the value");
    }
    s.value = expression();
    if (accept("@")) s.annotations = annotations();
    return s;
  }

  Target target() {
    Target target;
    target.place = place(peek());
    if (peek().kind != TokenKind::kName) fail(peek(), concat("found ", spelled(peek())), "a name");
    target.name = next().text;
    if (accept(":")) {
      target.type = type();
      if (accept_name("at")) target.memory = place_in_memory();
    }
    return target;
  }

  PlaceInMemory place_in_memory() {
    PlaceInMemory memory;
    if (peek().kind != TokenKind::kString) {
      memory.offset = integer("a byte of the arena, or a state's name");
    } else {
      const Token& name = next();
      if (name.text.empty()) fail(name, "the state's name is empty", "a state's name");
      memory.state = name.text;
      if (accept("+")) memory.offset = integer("an offset in bytes");
    }
    if (!accept_name("by")) return memory;
    expect("[", "and a stride for each axis");
    do memory.strides.push_back(integer("a stride in elements"));
    while (accept(","));
    expect("]", "to close the list");
    return memory;
  }

  Annotations annotations() {
    Annotations a;
    while (true) {
      if (accept_name("group"))
        a.group = small_integer("the number of a group");
      else if (accept_name("stream"))
        a.stream = small_integer("the number of a stream");
      else if (accept_name("recomputed"))
        a.recomputed = true;
      else if (is_name("from"))
        a.origin = origin();
      else
        return a;
    }
  }

  // from 12:3
  Origin origin() {
    next();
    Origin o;
    if (peek().kind == TokenKind::kString) {
      o.file = next().text;
      if (!accept(":")) return o;
    }
    o.line = small_integer("a line");
    if (accept(":")) o.column = small_integer("a column");
    return o;
  }

  TypeSyntax type() {
    TypeSyntax type;
    type.place = place(peek());
    if (peek().kind != TokenKind::kName)
      fail(peek(), concat("found ", spelled(peek())), "a type, as in f32[batch, seq]");
    type.dtype = next().text;
    expect("[", "and the sizes; a number alone is f32[]");
    type.sizes = list("]");
    return type;
  }
};

}  // namespace

ModelSyntax parse_model(std::string_view text, Diagnostics& diagnostics) {
  if (std::optional<size_t> bad = find_invalid_utf8(text)) {
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(*bad);
    const int line = 1 + static_cast<int>(std::count(text.begin(), end, '\n'));
    throw Error(concat("the text is not UTF-8 at byte ", *bad)).at({diagnostics.file(), line, 0});
  }
  ModelSyntax model = Parser(text, diagnostics).model();
  diagnostics.throw_if_any();
  return model;
}

Expression parse_expression(std::string_view text, const Diagnostics& diagnostics) {
  Diagnostics own(diagnostics.file(), text);
  try {
    Expression value = ExpressionParser(text, own).whole_expression();
    own.throw_if_any();
    return value;
  } catch (const Abandon&) {
    own.throw_if_any();
    throw;
  }
}

bool is_plain_expression(std::string_view text) {
  if (text.empty() || text.size() > 200) return false;
  for (char c : text)
    if (!is_identifier(std::string_view(&c, 1)) && !(c >= '0' && c <= '9') &&
        std::string_view("+-*/()").find(c) == std::string_view::npos)
      return false;
  try {
    Diagnostics own("", text);
    const Expression value = parse_expression(text, own);
    return value.kind != Expression::kNothing && value.kind != Expression::kNamedSize;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace kumi::language
