// The elaborator's inside: statements in elaborate.cpp, expressions in expressions.cpp, calls in calls.cpp.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "frontend/language/elaborate.h"
#include "frontend/language/environment.h"
#include "graph/builder.h"
#include "graph/op.h"

namespace kumi::language {

class Elaborator {
 public:
  Elaborator(const ModelSyntax& model, const Settings& settings, Diagnostics& diagnostics);
  Module run();

 private:
  // ---- statements
  void define_prelude();
  void define_parameters();
  void declare_sizes_of_inputs(const std::vector<Statement>& block);
  void apply_settings();
  void record_parameters();
  void define(const std::vector<Statement>& block, Frame& frame);
  void define_one(Frame& frame, const Statement& statement, Binding binding);
  // A block's statements; the value of `return`, if one was met.
  std::optional<Value> run_block(const std::vector<Statement>& block, Frame& frame);
  std::optional<Value> run_statement(const Statement& statement, Frame& frame);
  std::optional<Value> dispatch(const Statement& statement, Frame& frame);
  void assign(const Statement& statement, Frame& frame);
  void bind(const Target& target, Value value, Frame& frame);
  void poison(const Statement& statement, Frame& frame);
  void declare_size(const Statement& statement, Frame& frame);
  void build_inputs(const std::vector<Statement>& block, Frame& frame);
  void build_input(const Statement& statement, Frame& frame);
  void add_output(const Statement& statement, Frame& frame);
  std::optional<Value> run_repeat(const Statement& statement, Frame& frame);
  std::optional<Value> run_scope(const Statement& statement, Frame& frame);
  Type type_of(const TypeSyntax& syntax, Frame& frame);
  // Counts what has been done, so that a model that never ends is found.
  void count_step(Place place);

  // ---- expressions
  Value evaluate(const Expression& e, Frame& frame, const std::string& wish = "");
  Value evaluate_name(const Expression& e, Frame& frame);
  Value evaluate_definition(Binding& binding, const std::string& name);
  Value evaluate_list(const Expression& e, Frame& frame);
  Value evaluate_unary(const Expression& e, Frame& frame, const std::string& wish);
  Value evaluate_binary(const Expression& e, Frame& frame, const std::string& wish);
  Value integer_arithmetic(const Expression& e, const Dim& a, const Dim& b);
  Value tensor_arithmetic(const Expression& e, const Value& a, const Value& b, const std::string& wish);
  std::string interpolate(const Expression& e, Frame& frame);
  Dim to_size(const Expression& e, Frame& frame, const std::string& what);
  Shape to_shape(const std::vector<Expression>& sizes, Frame& frame);
  std::string to_text(const Expression& e, Frame& frame, const std::string& what);

  // ---- calls
  // Evaluated arguments of a call, in order.
  struct Actual {
    std::string name;  // "" if positional
    Place place;
    Value value;
    const Expression* expression;
  };
  using Builtin = std::function<Value(Elaborator&, const Expression&, Frame&, const std::string& wish)>;
  static const std::map<std::string, Builtin>& builtins();
  Value call(const Expression& e, Frame& frame, const std::string& wish);
  Value call_function(const Expression& e, const Binding& function, Frame& frame, const std::string& wish);
  Value call_op(const Expression& e, const OpDef& op, Frame& frame, const std::string& wish);
  Value call_weight(const Expression& e, Frame& frame);
  Value call_split(const Expression& e, Frame& frame, const std::string& wish);
  std::optional<Value> call_on_numbers(const Expression& e, const std::vector<Actual>& actuals);
  std::vector<Actual> evaluate_arguments(const Expression& e, Frame& frame);
  // The arguments in the order of the parameters' names; nullptr where one is not given.
  std::vector<const Argument*> match(const Expression& e, const std::vector<std::string>& names,
                                     size_t required);
  Initializer to_initializer(const Expression& e, Frame& frame);
  ValueId tensor_argument(const Expression& e, const Argument& argument, Frame& frame);
  size_t axis_argument(const Expression& e, const Argument& argument, const Type& type, Frame& frame);
  ValueId constant_like(double value, const std::vector<Actual>& actuals);
  ValueId to_operand(const Actual& actual, const OpDef& op, const std::vector<Actual>& actuals);

  std::vector<ValueId> build(const std::string& op, const std::vector<ValueId>& operands,
                             Attributes attributes, const std::string& wish, Place place);

  // ---- errors
  // Inside of the prelude, the place of the call of it.
  Place place_in_source(Place place) const { return fixed_place_ ? *fixed_place_ : place; }
  SourceLocation location(Place place) const;
  Error error(Place place, const std::string& what_happened) const;

  const ModelSyntax& syntax_;
  const Settings& settings_;
  Diagnostics& diagnostics_;
  ModelSyntax prelude_;
  std::vector<Expression> settings_values_;  // parsed
  Module module_;
  std::unordered_map<std::string, size_t> state_index_;  // into the module's states, by name
  Graph graph_;
  GraphBuilder builder_;
  Frame prelude_frame_, root_;
  std::vector<std::string> evaluating_;  // definitions, the outermost first
  std::optional<Place> fixed_place_;
  int call_depth_ = 0;
  int evaluation_depth_ = 0;
  int64_t steps_ = 0;
};

}  // namespace kumi::language
