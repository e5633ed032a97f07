// Values of expressions: arithmetic of sizes and numbers is done now, that of tensors becomes nodes.
#include <algorithm>
#include <cmath>

#include "frontend/language/elaborator.h"
#include "frontend/language/parser.h"
#include "graph/names.h"

namespace kumi::language {
namespace {

// Expressions within expressions, also across calls: evaluating them is recursive.
constexpr int kDeepestEvaluation = 1000;

// The graph's op for an operator of the language.
const char* op_of_operator(const std::string& op) {
  static const std::map<std::string, const char*> table = {
      {"+", "add"},    {"-", "sub"},       {"*", "mul"},         {"/", "div"},
      {"<", "less"},   {">", "greater"},   {"<=", "less_equal"}, {">=", "greater_equal"},
      {"==", "equal"}, {"!=", "not_equal"}};
  auto found = table.find(op);
  return found == table.end() ? nullptr : found->second;
}

template <typename T>
std::optional<bool> compare(const std::string& op, const T& a, const T& b) {
  if (op == "<") return a < b;
  if (op == "<=") return a <= b;
  if (op == ">") return a > b;
  if (op == ">=") return a >= b;
  if (op == "==") return a == b;
  if (op == "!=") return a != b;
  return std::nullopt;
}

}  // namespace

Value Elaborator::evaluate(const Expression& e, Frame& frame, const std::string& wish) {
  if (evaluation_depth_ >= kDeepestEvaluation)
    throw error(e.place, "the calls and expressions are nested too deeply")
        .expected(concat("at most ", kDeepestEvaluation, " levels"));
  struct Depth {
    int& depth;
    explicit Depth(int& d) : depth(d) { ++depth; }
    ~Depth() { --depth; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
  } depth(evaluation_depth_);
  switch (e.kind) {
    case Expression::kInteger:
      return Dim(e.integer);
    case Expression::kFloat:
      return e.number;
    case Expression::kString:
      return interpolate(e, frame);
    case Expression::kBool:
      return e.integer != 0;
    case Expression::kNothing:
      return Nothing{};
    case Expression::kName:
      return evaluate_name(e, frame);
    case Expression::kCall:
      return call(e, frame, wish);
    case Expression::kList:
      return evaluate_list(e, frame);
    case Expression::kUnary:
      return evaluate_unary(e, frame, wish);
    case Expression::kBinary:
      return evaluate_binary(e, frame, wish);
    case Expression::kNamedSize: {
      const Value value = evaluate(e.children[0], frame);
      if (!value.is<Dim>())
        throw error(e.place, concat("'", e.text, "' names a size, but is ", kind_of(value)))
            .expected("a whole number");
      return Dim::named(e.text, value.get<Dim>());
    }
  }
  return Poison{};
}

Value Elaborator::evaluate_name(const Expression& e, Frame& frame) {
  const Found found = find(&frame, e.text);
  if (found.binding == nullptr) {
    if (std::optional<DType> dtype = parse_dtype(e.text)) return *dtype;
    const bool is_function = builtins().count(e.text) != 0 || find_op(e.text) != nullptr;
    throw error(e.place, concat("'", e.text, "' is not defined"))
        .hint(is_function ? concat("'", e.text, "' is a function: give it arguments in parentheses")
                          : did_you_mean(e.text, visible_names(&frame)));
  }
  if (found.is_hidden)
    throw error(e.place, concat("'", e.text, "' is a variable, which cannot be seen from here"))
        .expected(
            "in functions and lets: parameters, sizes, inputs, functions, lets and a function's own "
            "arguments")
        .hint("hand it over as an argument");
  return evaluate_definition(*found.binding, e.text);
}

// A definition is evaluated where it stands, when somebody first asks for it.
Value Elaborator::evaluate_definition(Binding& binding, const std::string& name) {
  if (binding.function != nullptr)
    throw error(binding.place, concat("'", name, "' is a function and no value"));
  if (binding.state == Binding::kEvaluating) {
    std::string chain;
    auto first = std::find(evaluating_.begin(), evaluating_.end(), name);
    for (auto at = first; at != evaluating_.end(); ++at) chain += *at + " -> ";
    throw error(binding.place, concat("'", name, "' is defined by itself: ", chain, name))
        .expected("definitions that can be put into an order");
  }
  if (binding.state == Binding::kWaiting) {
    if (binding.definition == nullptr)
      throw error(binding.place, concat("the parameter '", name, "' has no value"))
          .hint(concat("give it one: --set model.", name, "=..."));
    binding.state = Binding::kEvaluating;
    evaluating_.push_back(name);
    const std::string scope = std::exchange(builder_.scope, binding.scope);
    try {
      Frame own;  // a let sees no variables
      own.parent = binding.home;
      own.hides_variables = true;
      count_step(binding.place);
      binding.value = evaluate(*binding.definition, own, name);
      if (binding.value.is<Dim>()) binding.value = Dim::named(name, binding.value.get<Dim>());
    } catch (Error& failure) {
      diagnostics_.report(std::move(failure));
      binding.value = Poison{};
    } catch (const Poisoned&) {
      binding.value = Poison{};
    }
    builder_.scope = scope;
    evaluating_.pop_back();
    binding.state = Binding::kReady;
  }
  if (binding.value.is<Poison>()) throw Poisoned();
  return binding.value;
}

Value Elaborator::evaluate_list(const Expression& e, Frame& frame) {
  List list;
  for (const Expression& child : e.children) list.items.push_back(evaluate(child, frame));
  return list;
}

Value Elaborator::evaluate_unary(const Expression& e, Frame& frame, const std::string& wish) {
  const Value a = evaluate(e.children[0], frame);
  if (e.text == "not" && a.is<bool>()) return !a.get<bool>();
  if (e.text == "-" && a.is<Dim>()) return Dim(0) - a.get<Dim>();
  if (e.text == "-" && a.is<double>()) return -a.get<double>();
  if (e.text == "-" && a.is<Tensors>() && !a.get<Tensors>().values.empty())
    return Tensors{build("neg", {a.get<Tensors>().values[0]}, {}, wish, e.place)};
  throw error(e.place, concat("'", e.text, "' of ", kind_of(a)))
      .expected(e.text == "not" ? "true or false" : "a number or a tensor");
}

Value Elaborator::integer_arithmetic(const Expression& e, const Dim& a, const Dim& b) {
  const std::string& op = e.text;
  if (op == "==") return a == b;
  if (op == "!=") return !(a == b);
  try {
    Dim result;
    if (op == "+") {
      result = a + b;
    } else if (op == "-") {
      result = a - b;
    } else if (op == "*") {
      result = a * b;
    } else if (op == "/") {
      if (b == Dim(0)) throw Error(concat(a.display(), " is divided by 0"));
      std::optional<Dim> quotient = Dim::divide_exact(a, b);
      if (!quotient)
        throw Error(concat(a.display(), " is not a multiple of ", b.display()))
            .hint(
                "the quotient of whole numbers must be whole; for a fraction write a number with a point: "
                "1.0 / 3");
      result = *std::move(quotient);
    } else if (op == "%") {
      if (b == Dim(0)) throw Error(concat(a.display(), " is divided by 0"));
      if (b == Dim(-1)) return Dim(0);
      return Dim(a.number() % b.number());
    } else if (std::optional<bool> truth = compare(op, a.number(), b.number())) {
      return *truth;
    }
    return Dim::named(compose_name(a, op[0], b), std::move(result));
  } catch (Error& failure) {
    throw failure.at(location(e.place));
  }
}

Value Elaborator::tensor_arithmetic(const Expression& e, const Value& a, const Value& b,
                                    const std::string& wish) {
  const char* op = op_of_operator(e.text);
  std::vector<Actual> actuals = {{"", e.children[0].place, a, &e.children[0]},
                                 {"", e.children[1].place, b, &e.children[1]}};
  std::vector<ValueId> operands;
  for (const Actual& actual : actuals) {
    if (op == nullptr || !(actual.value.is<Tensors>() || actual.value.is_number()))
      throw error(e.place, concat("'", e.text, "' of ", kind_of(a), " and ", kind_of(b)))
          .expected("numbers or tensors");
    builder_.location = location(e.place);
    operands.push_back(actual.value.is<Tensors>() ? actual.value.get<Tensors>().values.at(0)
                                                  : constant_like(to_double(actual.value), actuals));
  }
  return Tensors{build(op, operands, {}, wish, e.place)};
}

Value Elaborator::evaluate_binary(const Expression& e, Frame& frame, const std::string& wish) {
  Value a = evaluate(e.children[0], frame);
  const std::string& op = e.text;
  if (op == "and" || op == "or") {
    // The second operand counts only if the first does not decide.
    if (a.is<bool>() && a.get<bool>() == (op == "or")) return a;
    const Value b = evaluate(e.children[1], frame);
    if (!a.is<bool>() || !b.is<bool>())
      throw error(e.place, concat("'", op, "' of ", kind_of(a), " and ", kind_of(b)))
          .expected("true or false");
    return b;
  }
  const Value b = evaluate(e.children[1], frame);
  if (a.is<Dim>() && b.is<Dim>()) return integer_arithmetic(e, a.get<Dim>(), b.get<Dim>());
  if (a.is_number() && b.is_number()) {
    const double x = to_double(a), y = to_double(b);
    if (op == "+") return x + y;
    if (op == "-") return x - y;
    if (op == "*") return x * y;
    if (op == "/" && y != 0) return x / y;
    if (op == "/") throw error(e.place, concat(display(a, graph_), " is divided by 0"));
    if (op == "%") throw error(e.place, "'%' of numbers with a point").expected("whole numbers");
    return *compare(op, x, y);
  }
  if (a.is<std::string>() && b.is<std::string>()) {
    if (op == "+") return a.get<std::string>() + b.get<std::string>();
    if (op == "==") return a.get<std::string>() == b.get<std::string>();
    if (op == "!=") return a.get<std::string>() != b.get<std::string>();
  }
  if (a.is<bool>() && b.is<bool>()) {
    if (op == "==") return a.get<bool>() == b.get<bool>();
    if (op == "!=") return a.get<bool>() != b.get<bool>();
  }
  if (a.is<List>() && b.is<List>() && op == "+") {
    List joined = a.get<List>();
    for (const Value& item : b.get<List>().items) joined.items.push_back(item);
    return joined;
  }
  return tensor_arithmetic(e, a, b, wish);
}

// "layers.{i}": what stands in braces is an expression; {{ is a brace.
std::string Elaborator::interpolate(const Expression& e, Frame& frame) {
  std::string out;
  for (size_t i = 0; i < e.text.size(); ++i) {
    if (e.text[i] == '}' && i + 1 < e.text.size() && e.text[i + 1] == '}') ++i;
    if (e.text[i] != '{') {
      out += e.text[i];
      continue;
    }
    if (i + 1 < e.text.size() && e.text[i + 1] == '{') {
      out += '{';
      ++i;
      continue;
    }
    const size_t close = e.text.find('}', i);
    if (close == std::string::npos)
      throw error(e.place, "a brace in the string is not closed").hint("a brace itself is written {{");
    const std::string inner = e.text.substr(i + 1, close - i - 1);
    Value value;
    try {
      Diagnostics own(diagnostics_.file(), inner);
      value = evaluate(parse_expression(inner, own), frame);
    } catch (Error& failure) {
      throw error(e.place, concat("in {", inner, "} of the string: ", failure.what_happened()));
    }
    if (value.is<std::string>())
      out += value.get<std::string>();
    else if (value.is<Dim>())
      out += value.get<Dim>().polynomial();
    else if (value.is<double>() || value.is<bool>())
      out += display(value, graph_);
    else
      throw error(e.place, concat("{", inner, "} of the string is ", kind_of(value)))
          .expected("a number or a string");
    i = close;
  }
  return out;
}

Dim Elaborator::to_size(const Expression& e, Frame& frame, const std::string& what) {
  const Value value = evaluate(e, frame);
  if (!value.is<Dim>()) throw error(e.place, concat(what, " is ", kind_of(value))).expected("a whole number");
  return value.get<Dim>();
}

Shape Elaborator::to_shape(const std::vector<Expression>& sizes, Frame& frame) {
  Shape shape;
  for (const Expression& size : sizes) {
    shape.push_back(to_size(size, frame, "a size"));
    const Dim& dim = shape.back();
    if (dim.is_number() && dim.number() < 1)
      throw error(size.place, concat("the size ", dim.display())).expected("1 or more");
  }
  return shape;
}

std::string Elaborator::to_text(const Expression& e, Frame& frame, const std::string& what) {
  const Value value = evaluate(e, frame);
  if (!value.is<std::string>())
    throw error(e.place, concat(what, " is ", kind_of(value))).expected("a string");
  return value.get<std::string>();
}

}  // namespace kumi::language
