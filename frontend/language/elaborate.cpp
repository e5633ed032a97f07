#include "frontend/language/elaborate.h"

#include <algorithm>

#include "frontend/language/elaborator.h"
#include "frontend/language/parser.h"
#include "frontend/language/prelude.h"
#include "graph/names.h"

namespace kumi::language {
namespace {

constexpr int64_t kMostSteps = 2'000'000;  // statements and calls; PLaMo-13B has some thousand
constexpr int64_t kMostRepeats = 100'000;

std::string nested(const std::string& scope, const std::string& name) {
  return scope.empty() ? name : name.empty() ? scope : scope + "." + name;
}

bool is_group(const Statement& s) {
  return s.kind == Statement::kScope && !s.label;
}

// Sets something for as long as it lives.
template <typename T>
class Restore {
 public:
  Restore(T& place, T value) : place_(place), old_(std::exchange(place, std::move(value))) {}
  ~Restore() { place_ = std::move(old_); }
  Restore(const Restore&) = delete;
  Restore& operator=(const Restore&) = delete;

 private:
  T& place_;
  T old_;
};

}  // namespace

Elaborator::Elaborator(const ModelSyntax& model, const Settings& settings, Diagnostics& diagnostics)
    : syntax_(model), settings_(settings), diagnostics_(diagnostics), builder_(graph_) {
  graph_.name = "forward";
  root_.parent = &prelude_frame_;
}

Module Elaborator::run() {
  module_.name = syntax_.name;
  define_prelude();
  define_parameters();
  define(syntax_.body, root_);
  declare_sizes_of_inputs(syntax_.body);
  apply_settings();
  diagnostics_.throw_if_any();
  record_parameters();
  build_inputs(syntax_.body, root_);
  run_block(syntax_.body, root_);
  if (!diagnostics_.has_errors() && graph_.outputs.empty())
    diagnostics_.report(error(syntax_.place, concat("the model '", syntax_.name, "' has no output"))
                            .hint("add one: output loss = cross_entropy(logits, labels)"));
  diagnostics_.throw_if_any();
  module_.graphs.push_back(std::move(graph_));
  return std::move(module_);
}

SourceLocation Elaborator::location(Place place) const {
  place = place_in_source(place);
  return {diagnostics_.file(), place.line, place.column};
}

Error Elaborator::error(Place place, const std::string& what_happened) const {
  return Error(what_happened).at(location(place));
}

void Elaborator::count_step(Place place) {
  if (++steps_ > kMostSteps)
    throw error(place, "the model does not come to an end")
        .hint("look at its repeats and recursive functions");
}

// ------------------------------------------------------------------------------------- definitions

void Elaborator::define_prelude() {
  Diagnostics own("prelude", kPrelude);
  prelude_ = parse_model(kPrelude, own);
  define(prelude_.body, prelude_frame_);
  for (auto& entry : prelude_frame_.names) entry.second.is_prelude = true;
}

void Elaborator::define_parameters() {
  for (const Argument& parameter : syntax_.parameters) {
    Binding binding;
    binding.state = Binding::kWaiting;
    binding.definition = parameter.value.empty() ? nullptr : parameter.value.data();
    binding.home = &root_;
    binding.place = parameter.place;
    root_.names[parameter.name] = std::move(binding);
  }
}

// Settings take the place of the defaults; they may use other parameters.
void Elaborator::apply_settings() {
  settings_values_.reserve(settings_.size());
  for (const auto& [name, text] : settings_) {
    const std::string file = concat("--set model.", name, "=", text);
    auto found = root_.names.find(name);
    const bool is_parameter =
        std::any_of(syntax_.parameters.begin(), syntax_.parameters.end(),
                    [&, &wanted = name](const Argument& parameter) { return parameter.name == wanted; });
    auto size = std::find_if(module_.sizes.begin(), module_.sizes.end(),
                             [&, &wanted = name](const auto& entry) { return entry.first == wanted; });
    try {
      if (!is_parameter && size == module_.sizes.end()) {
        std::vector<std::string> names;
        for (const Argument& parameter : syntax_.parameters) names.push_back(parameter.name);
        for (const auto& entry : module_.sizes) names.push_back(entry.first);
        throw Error(concat("the model '", syntax_.name, "' has no parameter '", name, "'"))
            .expected(names.empty() ? "no parameters" : "one of " + joined(names))
            .hint(did_you_mean(name, names));
      }
      const Expression* default_value = is_parameter ? found->second.definition : nullptr;
      // A word is a string where a string is asked for.
      const bool wants_string = default_value != nullptr && default_value->kind == Expression::kString;
      Diagnostics own(file, text);
      Expression value;
      if (wants_string && !text.starts_with('"')) {
        value.kind = Expression::kString;
        value.text = text;
      } else {
        value = parse_expression(text, own);
      }
      const bool wants_float = default_value != nullptr && default_value->kind == Expression::kFloat;
      const bool wants_integer = default_value != nullptr && default_value->kind == Expression::kInteger;
      const bool wants_bool = default_value != nullptr && default_value->kind == Expression::kBool;
      if (wants_float && value.kind == Expression::kInteger) {
        value.kind = Expression::kFloat;
        value.number = static_cast<double>(value.integer);
      }
      const bool is_literal = value.kind <= Expression::kBool;
      if (is_literal && ((wants_integer && value.kind != Expression::kInteger) ||
                         (wants_float && value.kind != Expression::kFloat) ||
                         (wants_bool && value.kind != Expression::kBool)))
        throw Error(concat("the value is ", text))
            .expected(wants_integer ? "a whole number, as the default is"
                      : wants_float ? "a number, as the default is"
                                    : "true or false");
      settings_values_.push_back(std::move(value));
      if (is_parameter) {
        found->second.definition = &settings_values_.back();
      } else {
        const Value given = evaluate(settings_values_.back(), root_);
        if (!given.is<Dim>()) throw Error(concat("the value is ", text)).expected("a whole number");
        size->second = given.get<Dim>();
      }
    } catch (Error& failure) {
      diagnostics_.report(failure.at({file}));
    } catch (const Poisoned&) {
    }
  }
}

// The values that the parameters have, for the record.
void Elaborator::record_parameters() {
  for (const Argument& parameter : syntax_.parameters) {
    Binding& binding = root_.names[parameter.name];
    try {
      if (binding.definition == nullptr)
        throw error(parameter.place, concat("the parameter '", parameter.name, "' has no value"))
            .hint(concat("give it one: --set model.", parameter.name, "=..."));
      const Value value = evaluate_definition(binding, parameter.name);
      std::optional<Attribute> attribute;
      for (AttributeKind kind : {AttributeKind::kBool, AttributeKind::kInt, AttributeKind::kFloat,
                                 AttributeKind::kString, AttributeKind::kDType, AttributeKind::kShape})
        if (!attribute) attribute = to_attribute(value, kind);
      if (!attribute)
        throw error(parameter.place, concat("the parameter '", parameter.name, "' is ", kind_of(value)))
            .expected("a number, string, type or list of whole numbers");
      if (Dim* dim = std::get_if<Dim>(&*attribute)) *dim = dim->without_name();
      module_.parameters.emplace_back(parameter.name, *std::move(attribute));
    } catch (Error& failure) {
      diagnostics_.report(failure);
      binding.state = Binding::kReady;
      binding.value = Poison{};
    } catch (const Poisoned&) {
    }
  }
}

void Elaborator::define_one(Frame& frame, const Statement& statement, Binding binding) {
  binding.place = statement.place;
  binding.home = &frame;
  binding.scope = builder_.scope;
  auto [entry, is_new] = frame.names.emplace(statement.name, binding);
  if (is_new) return;
  diagnostics_.report(error(statement.place, concat("'", statement.name, "' is defined twice"))
                          .hint(concat("it is defined in line ", entry->second.place.line, " already")));
}

// What holds in the whole block: sizes, lets and functions.
void Elaborator::define(const std::vector<Statement>& block, Frame& frame) {
  for (const Statement& statement : block) {
    if (is_group(statement)) define(statement.body, frame);
    if (statement.kind == Statement::kSize) declare_size(statement, frame);
    Binding binding;
    if (statement.kind == Statement::kLet) {
      binding.state = Binding::kWaiting;
      binding.definition = &*statement.value;
      define_one(frame, statement, std::move(binding));
    } else if (statement.kind == Statement::kFunction) {
      binding.function = &statement;
      define_one(frame, statement, std::move(binding));
    }
  }
}

void Elaborator::declare_size(const Statement& statement, Frame& frame) {
  if (&frame != &root_) {
    diagnostics_.report(error(statement.place, "a size can be declared in the model's outermost block only"));
    return;
  }
  Binding binding;
  binding.value = Dim::symbol(statement.name);
  const size_t before = frame.names.count(statement.name);
  define_one(frame, statement, std::move(binding));
  if (before != 0) return;
  module_.sizes.emplace_back(statement.name, std::nullopt);
}

// A name in an input's type that nothing else defines is a free size.
void Elaborator::declare_sizes_of_inputs(const std::vector<Statement>& block) {
  for (const Statement& statement : block) {
    if (is_group(statement)) declare_sizes_of_inputs(statement.body);
    if (statement.kind != Statement::kInput) continue;
    for (const Expression& size : statement.type->sizes) {
      if (size.kind != Expression::kName || !is_identifier(size.text) || root_.names.count(size.text) != 0)
        continue;
      Binding binding;
      binding.place = size.place;
      binding.value = Dim::symbol(size.text);
      root_.names[size.text] = std::move(binding);
      module_.sizes.emplace_back(size.text, std::nullopt);
    }
  }
}

// -------------------------------------------------------------------------------------- statements

std::optional<Value> Elaborator::run_block(const std::vector<Statement>& block, Frame& frame) {
  for (const Statement& statement : block) {
    if (diagnostics_.is_full()) return std::nullopt;
    if (std::optional<Value> value = run_statement(statement, frame)) return value;
  }
  return std::nullopt;
}

// Outside of functions, an error is reported and the next statement goes on; inside, it is the call's.
std::optional<Value> Elaborator::run_statement(const Statement& statement, Frame& frame) {
  count_step(statement.place);
  if (call_depth_ > 0) return dispatch(statement, frame);
  try {
    return dispatch(statement, frame);
  } catch (Error& failure) {
    diagnostics_.report(std::move(failure));
    poison(statement, frame);
  } catch (const Poisoned&) {
    poison(statement, frame);
  }
  return std::nullopt;
}

std::optional<Value> Elaborator::dispatch(const Statement& statement, Frame& frame) {
  switch (statement.kind) {
    case Statement::kAssign:
      assign(statement, frame);
      return std::nullopt;
    case Statement::kLet:
      // Also one that nobody asks for must make sense.
      evaluate_definition(frame.names.at(statement.name), statement.name);
      return std::nullopt;
    case Statement::kSize:
      if (statement.value)
        for (auto& [name, value] : module_.sizes)
          if (name == statement.name && !value)
            value = to_size(*statement.value, frame, concat("the default of '", name, "'"));
      return std::nullopt;
    case Statement::kFunction:
      return std::nullopt;
    case Statement::kInput:
      if (&frame != &root_)
        throw error(statement.place, "an input can stand in the model's outermost block only");
      return std::nullopt;
    case Statement::kOutput:
      add_output(statement, frame);
      return std::nullopt;
    case Statement::kReturn:
      if (call_depth_ == 0) throw error(statement.place, "'return' stands outside of a function");
      return evaluate(*statement.value, frame);
    case Statement::kRepeat:
      return run_repeat(statement, frame);
    case Statement::kScope:
      return run_scope(statement, frame);
    case Statement::kIf: {
      const Value condition = evaluate(*statement.value, frame);
      if (!condition.is<bool>())
        throw error(statement.value->place, concat("the condition is ", kind_of(condition)))
            .expected("true or false, known before the model runs");
      const std::vector<Statement>& chosen = condition.get<bool>() ? statement.body : statement.otherwise;
      define(chosen, frame);
      return run_block(chosen, frame);
    }
    case Statement::kSource:
    case Statement::kPasses:
    case Statement::kMesh:
    case Statement::kState:
    case Statement::kGraph:
      throw error(statement.place, "this belongs into the dump of a graph, not among a model's statements");
  }
  return std::nullopt;
}

void Elaborator::assign(const Statement& statement, Frame& frame) {
  const Annotations& a = statement.annotations;
  if (a.group != -1 || a.stream != 0 || a.recomputed || a.origin)
    throw error(statement.place, "annotations (@) belong into the dump of a graph");
  const std::string wish = statement.targets.empty() ? "" : statement.targets[0].name;
  Value value = evaluate(*statement.value, frame, wish);
  if (statement.targets.empty())
    throw error(statement.place, concat("the result of '", statement.value->text, "' is not used"))
        .expected("name = ...");
  if (statement.targets.size() == 1) {
    bind(statement.targets[0], std::move(value), frame);
    return;
  }
  std::vector<Value> parts;
  if (value.is<List>()) {
    parts = value.get<List>().items;
  } else if (value.is<Tensors>()) {
    for (ValueId id : value.get<Tensors>().values) parts.emplace_back(Tensors{{id}});
  } else {
    parts = {value};
  }
  if (parts.size() < statement.targets.size())
    throw error(statement.place, concat(statement.targets.size(), " names for ", parts.size(),
                                        parts.size() == 1 ? " value" : " values"));
  for (size_t i = 0; i < statement.targets.size(); ++i) bind(statement.targets[i], parts[i], frame);
}

void Elaborator::bind(const Target& target, Value value, Frame& frame) {
  if (!is_identifier(target.name))
    throw error(target.place, concat("'", target.name, "' is no name for a variable"))
        .expected("letters, digits and '_'");
  if (target.memory) throw error(target.place, "places in memory ('at') belong into the dump of a graph");
  if (target.type) {
    const Type type = type_of(*target.type, frame);
    if (!value.is<Tensors>())
      throw error(target.place, concat("'", target.name, "' is declared as ", kumi::display(type),
                                       ", but is ", kind_of(value)));
    const Type& found = graph_.type(value.get<Tensors>().values.at(0));
    if (found != type)
      throw error(target.place, concat("'", target.name, "' is declared as ", kumi::display(type),
                                       ", but is ", kumi::display(found)));
  }
  // A size keeps the name under which it is known.
  if (value.is<Dim>()) value = Dim::named(target.name, value.get<Dim>());
  Found found = find(&frame, target.name);
  if (found.binding != nullptr && !found.is_hidden && found.binding->is_variable) {
    found.binding->value = std::move(value);
    return;
  }
  if (frame.names.count(target.name) != 0 || (call_depth_ == 0 && root_.names.count(target.name) != 0))
    throw error(target.place, concat("'", target.name,
                                     "' cannot be assigned: it is a parameter, size, input, "
                                     "function or let"));
  Binding binding;
  binding.is_variable = true;
  binding.value = std::move(value);
  binding.place = target.place;
  frame.names[target.name] = std::move(binding);
}

void Elaborator::poison(const Statement& statement, Frame& frame) {
  if (statement.kind == Statement::kOutput && find(&frame, statement.name).binding == nullptr) {
    Binding binding;
    binding.is_variable = true;
    binding.value = Poison{};
    frame.names[statement.name] = std::move(binding);
  }
  for (const Target& target : statement.targets) {
    Found found = find(&frame, target.name);
    if (found.binding == nullptr) {
      Binding binding;
      binding.is_variable = true;
      found.binding = &(frame.names[target.name] = std::move(binding));
    }
    if (!found.binding->is_variable) continue;
    found.binding->value = Poison{};
  }
}

void Elaborator::build_inputs(const std::vector<Statement>& block, Frame& frame) {
  for (const Statement& statement : block) {
    if (is_group(statement)) build_inputs(statement.body, frame);
    if (statement.kind != Statement::kInput) continue;
    try {
      build_input(statement, frame);
    } catch (Error& failure) {
      diagnostics_.report(std::move(failure));
      poison(statement, frame);
    } catch (const Poisoned&) {
      poison(statement, frame);
    }
  }
}

void Elaborator::build_input(const Statement& statement, Frame& frame) {
  const Type type = type_of(*statement.type, frame);
  for (const Target& target : statement.targets) {
    if (frame.names.count(target.name) != 0)
      throw error(target.place, concat("'", target.name, "' is defined twice"));
    Binding binding;
    binding.place = target.place;
    binding.value =
        Tensors{build("input", {}, {{"name", target.name}, {"dtype", type.dtype}, {"shape", type.shape}},
                      target.name, target.place)};
    frame.names[target.name] = std::move(binding);
  }
}

void Elaborator::add_output(const Statement& statement, Frame& frame) {
  if (call_depth_ > 0) throw error(statement.place, "an output cannot stand in a function");
  const Value value = evaluate(*statement.value, frame, is_identifier(statement.name) ? statement.name : "");
  if (!value.is<Tensors>() || value.get<Tensors>().values.empty())
    throw error(statement.value->place, concat("the output '", statement.name, "' is ", kind_of(value)))
        .expected("a tensor");
  if (!is_plain_name(statement.name))
    throw error(statement.place, concat("an output cannot be named ", quoted(statement.name)));
  if (graph_.find_output(statement.name) != kNone)
    throw error(statement.place, concat("there are two outputs '", statement.name, "'"));
  graph_.outputs.push_back({statement.name, value.get<Tensors>().values[0]});
  // It can be used as a value as well.
  if (is_identifier(statement.name) && find(&frame, statement.name).binding == nullptr) {
    Binding binding;
    binding.is_variable = true;
    binding.place = statement.place;
    binding.value = value;
    frame.names[statement.name] = std::move(binding);
  }
}

std::optional<Value> Elaborator::run_repeat(const Statement& statement, Frame& frame) {
  const Dim count = to_size(*statement.value, frame, "the number of repeats");
  if (!count.is_number())
    throw error(statement.value->place, concat("the number of repeats is ", count.display()))
        .expected("a number, known before the model runs");
  if (count.number() < 0 || count.number() > kMostRepeats)
    throw error(statement.value->place, concat("the number of repeats is ", count.display()))
        .expected(concat("0 to ", kMostRepeats));
  const std::string outer = builder_.scope;
  for (int64_t i = 0; i < count.number(); ++i) {
    Frame inner;
    inner.parent = &frame;
    if (!statement.name.empty()) {
      Binding counter;
      counter.place = statement.place;
      counter.value = Dim(i);
      inner.names[statement.name] = std::move(counter);
    }
    const std::string label = statement.label ? to_text(*statement.label, inner, "a scope") : "";
    if (statement.label && !is_plain_name(label))
      throw error(statement.label->place, concat("a scope cannot be named ", quoted(label)));
    Restore<std::string> scope(builder_.scope, nested(outer, label));
    define(statement.body, inner);
    if (std::optional<Value> value = run_block(statement.body, inner)) return value;
    if (diagnostics_.has_errors()) break;  // every round would have the same
  }
  return std::nullopt;
}

std::optional<Value> Elaborator::run_scope(const Statement& statement, Frame& frame) {
  if (is_group(statement)) return run_block(statement.body, frame);
  const std::string label = to_text(*statement.label, frame, "a scope");
  if (!is_plain_name(label))
    throw error(statement.label->place, concat("a scope cannot be named ", quoted(label)));
  Restore<std::string> scope(builder_.scope, nested(builder_.scope, label));
  Frame inner;
  inner.parent = &frame;
  define(statement.body, inner);
  return run_block(statement.body, inner);
}

Type Elaborator::type_of(const TypeSyntax& syntax, Frame& frame) {
  const std::optional<DType> dtype = parse_dtype(syntax.dtype);
  if (!dtype) {
    std::vector<std::string> names;
    for (DType known : kAllDTypes) names.emplace_back(to_string(known));
    throw error(syntax.place, concat("there is no element type '", syntax.dtype, "'"))
        .expected("one of f32, bf16, f16, f64, i32, i64, u8, bool")
        .hint(did_you_mean(syntax.dtype, names));
  }
  return {*dtype, to_shape(syntax.sizes, frame)};
}

Module elaborate(const ModelSyntax& model, const Settings& settings, Diagnostics& diagnostics) {
  return Elaborator(model, settings, diagnostics).run();
}

}  // namespace kumi::language
