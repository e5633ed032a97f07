// Calls: the source's own functions, what only the elaborator can answer (weight, dim, split, ...), and ops.
#include <algorithm>
#include <cmath>

#include "frontend/language/elaborator.h"
#include "graph/names.h"

namespace kumi::language {
namespace {

constexpr int kDeepestCalls = 100;
constexpr size_t kMostNodes = 200'000;

}  // namespace

std::vector<ValueId> Elaborator::build(const std::string& op, const std::vector<ValueId>& operands,
                                       Attributes attributes, const std::string& wish, Place place) {
  count_step(place);
  if (graph_.nodes.size() >= kMostNodes)
    throw error(place, concat("the graph has more than ", kMostNodes, " nodes"))
        .hint("look at the model's repeats");
  builder_.location = location(place);
  return builder_.build(op, operands, std::move(attributes), wish);
}

Value Elaborator::call(const Expression& e, Frame& frame, const std::string& wish) {
  count_step(e.place);
  const Found found = find(&frame, e.text);
  if (found.binding != nullptr && found.binding->function != nullptr)
    return call_function(e, *found.binding, frame, wish);
  if (auto builtin = builtins().find(e.text); builtin != builtins().end())
    return builtin->second(*this, e, frame, wish);
  const OpDef* op = find_op(e.text);
  if (op != nullptr && !op->is_state_access) return call_op(e, *op, frame, wish);
  if (op != nullptr)
    throw error(e.place, concat("'", e.text, "' cannot be called in a model"))
        .expected("inputs and weights: input x: f32[n], weight(\"name\", [n], init = zeros)");
  std::vector<std::string> names = visible_names(&frame);
  std::erase_if(names, [&](const std::string& name) {
    const Binding* binding = find(&frame, name).binding;
    return binding == nullptr || binding->function == nullptr;
  });
  for (const auto& entry : builtins()) names.push_back(entry.first);
  for (const OpDef* known : all_ops())
    if (!known->is_state_access) names.push_back(known->name);
  throw error(e.place, concat("unknown function or op '", e.text, "'"))
      .hint(found.binding != nullptr ? concat("'", e.text, "' is a value, not a function")
                                     : did_you_mean(e.text, names));
}

std::vector<Elaborator::Actual> Elaborator::evaluate_arguments(const Expression& e, Frame& frame) {
  std::vector<Actual> actuals;
  for (const Argument& argument : e.arguments) {
    if (argument.name.empty() && !actuals.empty() && !actuals.back().name.empty())
      throw error(argument.place, "an argument without a name stands after one with a name");
    for (const Actual& other : actuals)
      if (!argument.name.empty() && other.name == argument.name)
        throw error(argument.place, concat("the argument '", argument.name, "' is given twice"));
    actuals.push_back(
        {argument.name, argument.place, evaluate(argument.value[0], frame), &argument.value[0]});
  }
  return actuals;
}

std::vector<const Argument*> Elaborator::match(const Expression& e, const std::vector<std::string>& names,
                                               size_t required) {
  std::vector<const Argument*> matched(names.size(), nullptr);
  const std::string signature = concat(e.text, "(", joined(names), ")");
  size_t position = 0;
  for (const Argument& argument : e.arguments) {
    size_t at = position;
    if (argument.name.empty()) {
      if (position >= names.size())
        throw error(argument.place, concat("'", e.text, "' has too many arguments")).expected(signature);
      ++position;
    } else {
      at = static_cast<size_t>(std::find(names.begin(), names.end(), argument.name) - names.begin());
      if (at == names.size())
        throw error(argument.place, concat("'", e.text, "' has no argument '", argument.name, "'"))
            .expected(signature)
            .hint(did_you_mean(argument.name, names));
    }
    if (matched[at] != nullptr)
      throw error(argument.place, concat("the argument '", names[at], "' is given twice"))
          .expected(signature);
    matched[at] = &argument;
  }
  for (size_t i = 0; i < required; ++i)
    if (matched[i] == nullptr)
      throw error(e.place, concat("'", e.text, "': the argument '", names[i], "' is missing"))
          .expected(signature);
  return matched;
}

Value Elaborator::call_function(const Expression& e, const Binding& function, Frame& frame,
                                const std::string& wish) {
  const Statement& definition = *function.function;
  if (call_depth_ >= kDeepestCalls)
    throw error(e.place, concat("functions call each other more than ", kDeepestCalls, " deep"));
  std::vector<std::string> names;
  for (const Argument& parameter : definition.parameters) names.push_back(parameter.name);
  const std::vector<const Argument*> given = match(e, names, 0);

  Frame own;
  own.parent = function.home;
  own.hides_variables = true;
  for (size_t i = 0; i < names.size(); ++i) {
    const Argument& parameter = definition.parameters[i];
    if (given[i] == nullptr && parameter.value.empty())
      throw error(e.place, concat("'", e.text, "': the argument '", names[i], "' is missing"))
          .expected(concat(e.text, "(", joined(names), ")"));
    Binding binding;
    binding.is_variable = true;
    binding.place = parameter.place;
    binding.value =
        given[i] != nullptr ? evaluate(given[i]->value[0], frame) : evaluate(parameter.value[0], own);
    own.names[names[i]] = std::move(binding);
  }

  const std::optional<Place> outer_place = fixed_place_;
  if (function.is_prelude && !fixed_place_) fixed_place_ = e.place;
  ++call_depth_;
  auto leave = [&] {
    --call_depth_;
    fixed_place_ = outer_place;
  };
  try {
    Value result = Nothing{};
    if (definition.value) {
      result = evaluate(*definition.value, own, wish);
    } else {
      define(definition.body, own);
      std::optional<Value> returned = run_block(definition.body, own);
      if (!returned)
        throw error(definition.place, concat("the function '", definition.name, "' returns nothing"))
            .expected("return VALUE at its end");
      result = *std::move(returned);
    }
    leave();
    return result;
  } catch (Error& failure) {
    leave();
    if (!function.is_prelude)
      failure.while_doing(concat("calling '", definition.name, "' at ", to_string(location(e.place))));
    throw;
  } catch (const Poisoned&) {
    leave();
    throw;
  }
}

// -------------------------------------------------------------------------------------------- ops

// A number beside tensors becomes a constant of their element type.
ValueId Elaborator::constant_like(double value, const std::vector<Actual>& actuals) {
  DType dtype = DType::F32;
  for (const Actual& actual : actuals)
    if (actual.value.is<Tensors>() && !actual.value.get<Tensors>().values.empty()) {
      dtype = graph_.type(actual.value.get<Tensors>().values[0]).dtype;
      if (dtype != DType::BOOL) break;
    }
  return builder_.constant(value, {}, dtype);
}

ValueId Elaborator::to_operand(const Actual& actual, const OpDef& op, const std::vector<Actual>& actuals) {
  if (actual.value.is<Nothing>()) return kNone;
  if (actual.value.is<Tensors>() && !actual.value.get<Tensors>().values.empty())
    return actual.value.get<Tensors>().values[0];
  builder_.location = location(actual.place);
  if (actual.value.is_number()) return constant_like(to_double(actual.value), actuals);
  throw error(actual.place, concat("'", op.name, "': the operand is ", kind_of(actual.value)))
      .expected("a tensor");
}

// Positional arguments are the operands, and after them attributes in the order of the schema; named ones
// are either.
Value Elaborator::call_op(const Expression& e, const OpDef& op, Frame& frame, const std::string& wish) {
  const std::vector<Actual> actuals = evaluate_arguments(e, frame);
  if (std::optional<Value> number = call_on_numbers(e, actuals)) return *number;
  const bool variadic = !op.operands.empty() && op.operands.back().variadic;
  std::vector<ValueId> operands;
  Attributes attributes;
  size_t next_attribute = 0;
  auto set_attribute = [&](const AttributeSpec& spec, const Actual& actual) {
    if (find_attribute(attributes, spec.name) != nullptr)
      throw error(actual.place, concat("'", op.name, "': the attribute '", spec.name, "' is given twice"));
    std::optional<Attribute> attribute = to_attribute(actual.value, spec.kind);
    if (!attribute)
      throw error(actual.place,
                  concat("'", op.name, "': the attribute '", spec.name, "' is ", kind_of(actual.value)))
          .expected(concat(to_string(spec.kind), ": ", spec.doc));
    attributes.emplace_back(spec.name, *std::move(attribute));
  };
  for (const Actual& actual : actuals) {
    if (!actual.name.empty()) {
      auto spec = std::find_if(op.attributes.begin(), op.attributes.end(),
                               [&](const AttributeSpec& s) { return s.name == actual.name; });
      if (spec != op.attributes.end()) {
        set_attribute(*spec, actual);
        continue;
      }
      size_t i = 0;
      while (i < op.operands.size() && op.operands[i].name != actual.name) ++i;
      if (i == op.operands.size()) {
        std::vector<std::string> names;
        for (const OperandSpec& operand : op.operands) names.push_back(operand.name);
        for (const AttributeSpec& attribute : op.attributes) names.push_back(attribute.name);
        throw error(actual.place, concat("'", op.name, "' has no operand or attribute '", actual.name, "'"))
            .expected(names.empty() ? "no arguments" : "one of " + joined(names))
            .hint(did_you_mean(actual.name, names));
      }
      if (i < operands.size() && operands[i] != kNone)
        throw error(actual.place, concat("'", op.name, "': the operand '", actual.name, "' is given twice"));
      while (operands.size() <= i) operands.push_back(kNone);
      operands[i] = to_operand(actual, op, actuals);
      continue;
    }
    const size_t i = operands.size();
    const bool fits = variadic || i < op.operands.size();
    const bool optional = !variadic && fits && op.operands[i].optional;
    const bool is_tensor = actual.value.is<Tensors>() || actual.value.is<Nothing>();
    const bool is_operand =
        next_attribute == 0 && fits && (is_tensor || (actual.value.is_number() && !optional));
    if (is_operand) {
      operands.push_back(to_operand(actual, op, actuals));
    } else if (next_attribute < op.attributes.size() && !is_tensor) {
      set_attribute(op.attributes[next_attribute++], actual);
    } else {
      throw error(actual.place, concat("'", op.name, "' has too many arguments"))
          .expected(concat(op.operands.size(), " operands and ", op.attributes.size(), " attributes"));
    }
  }
  return Tensors{build(op.name, operands, std::move(attributes), wish, e.place)};
}

// Functions of numbers alone give a number: sqrt(2.0 * layers).
std::optional<Value> Elaborator::call_on_numbers(const Expression& e, const std::vector<Actual>& actuals) {
  static const std::map<std::string, double (*)(double)> kFunctions = {
      {"sqrt", std::sqrt}, {"exp", std::exp}, {"log", std::log}};
  for (const Actual& actual : actuals)
    if (!actual.name.empty() || !actual.value.is_number()) return std::nullopt;
  auto function = kFunctions.find(e.text);
  if (function != kFunctions.end() && actuals.size() == 1) {
    const double result = function->second(to_double(actuals[0].value));
    if (!std::isfinite(result))
      throw error(e.place, concat(e.text, " of ", display(actuals[0].value, graph_), " is no number"));
    return result;
  }
  if (actuals.size() == 2 && (e.text == "minimum" || e.text == "maximum")) {
    const bool first = (to_double(actuals[0].value) < to_double(actuals[1].value)) == (e.text == "minimum");
    return actuals[first ? 0 : 1].value;
  }
  return std::nullopt;
}

// --------------------------------------------------------------------------------------- builtins

ValueId Elaborator::tensor_argument(const Expression& e, const Argument& argument, Frame& frame) {
  const Value value = evaluate(argument.value[0], frame);
  if (!value.is<Tensors>() || value.get<Tensors>().values.empty())
    throw error(argument.place, concat("'", e.text, "' of ", kind_of(value))).expected("a tensor");
  return value.get<Tensors>().values[0];
}

// An axis of a type, counted from 0 or, if negative, from behind.
size_t Elaborator::axis_argument(const Expression& e, const Argument& argument, const Type& type,
                                 Frame& frame) {
  const Dim axis = to_size(argument.value[0], frame, "the axis");
  int64_t at = axis.is_number() ? axis.number() : INT64_MAX;
  if (at < 0) at += type.rank();
  if (at < 0 || at >= type.rank())
    throw error(argument.place,
                concat(e.text, ": there is no axis ", axis.display(), " in ", kumi::display(type)))
        .expected(concat(-type.rank(), " to ", type.rank() - 1));
  return static_cast<size_t>(at);
}

Initializer Elaborator::to_initializer(const Expression& e, Frame& frame) {
  const std::optional<Initializer::Kind> kind = parse_initializer_kind(e.text);
  const bool takes_one = kind && has_parameter(*kind);
  const bool fits = kind && e.kind == (takes_one ? Expression::kCall : Expression::kName) &&
                    e.arguments.size() == (takes_one ? 1 : 0);
  if (!fits)
    throw error(e.place, "this is no initializer")
        .expected("zeros, ones, constant(value), normal(standard deviation) or uniform(half width)");
  if (!takes_one) return {*kind, 0};
  const Value value = evaluate(e.arguments[0].value[0], frame);
  if (!value.is_number() || !std::isfinite(to_double(value)))
    throw error(e.place, concat("the initializer's parameter is ", kind_of(value))).expected("a number");
  if (*kind != Initializer::kConstant && to_double(value) < 0)
    throw error(e.place, concat("the initializer's parameter is ", display(value, graph_)))
        .expected("0 or more");
  return {*kind, to_double(value)};
}

// weight("name", [sizes], init = normal(0.02), dtype = f32): declares the weight and reads it.
Value Elaborator::call_weight(const Expression& e, Frame& frame) {
  const std::vector<const Argument*> given = match(e, {"name", "shape", "init", "dtype"}, 3);
  const std::string name = to_text(given[0]->value[0], frame, "a weight's name");
  const Value sizes = evaluate(given[1]->value[0], frame);
  const std::optional<Attribute> shape = to_attribute(sizes, AttributeKind::kShape);
  if (!shape)
    throw error(given[1]->place, concat("the weight's shape is ", kind_of(sizes)))
        .expected("a list of sizes, as in [hidden, 64]");
  State state;
  state.name = builder_.scope.empty() ? name : builder_.scope + "." + name;
  state.type.shape = std::get<Shape>(*shape);
  state.initializer = to_initializer(given[2]->value[0], frame);
  state.location = location(e.place);
  if (given[3] != nullptr) {
    const Value dtype = evaluate(given[3]->value[0], frame);
    if (!dtype.is<DType>() || !is_floating(dtype.get<DType>()))
      throw error(given[3]->place, concat("the weight's element type is ", display(dtype, graph_)))
          .expected("f32, bf16, f16 or f64");
    state.type.dtype = dtype.get<DType>();
  }
  if (!is_plain_name(name)) throw error(given[0]->place, concat("a weight cannot be named ", quoted(name)));
  for (const Dim& dim : state.type.shape)
    if (dim.is_number() && dim.number() < 1)
      throw error(given[1]->place, concat("the size ", dim.display(), " of the weight '", state.name, "'"))
          .expected("1 or more");
  auto index = state_index_.find(state.name);
  const State* known = index == state_index_.end() ? nullptr : &module_.states[index->second];
  if (known != nullptr && (known->type != state.type || known->initializer != state.initializer))
    throw error(e.place, concat("the weight '", state.name, "' is declared twice, as ",
                                kumi::display(known->type), " = ", to_string(known->initializer), " and as ",
                                kumi::display(state.type), " = ", to_string(state.initializer)))
        .hint("a layer's weights need a scope of their own: repeat layers as i in \"layers.{i}\"");
  Attributes attributes = {{"state", state.name}, {"dtype", state.type.dtype}, {"shape", state.type.shape}};
  std::vector<ValueId> value = build("read", {}, std::move(attributes), to_value_name(state.name), e.place);
  if (known == nullptr) {
    state_index_.emplace(state.name, module_.states.size());
    module_.states.push_back(std::move(state));
  }
  return Tensors{std::move(value)};
}

// split(x, parts, axis): equal slices.
Value Elaborator::call_split(const Expression& e, Frame& frame, const std::string& wish) {
  const std::vector<const Argument*> given = match(e, {"x", "parts", "axis"}, 3);
  const ValueId tensor = tensor_argument(e, *given[0], frame);
  const Dim parts = to_size(given[1]->value[0], frame, "the number of parts");
  const Type type = graph_.type(tensor);
  if (!parts.is_number() || parts.number() < 1 || parts.number() > 1000)
    throw error(given[1]->place, concat("the number of parts is ", parts.display())).expected("1 to 1000");
  const size_t at = axis_argument(e, *given[2], type, frame);
  const Dim& size = type.shape[at];
  const std::optional<Dim> part = Dim::divide_exact(size, parts);
  if (!part)
    throw error(e.place, concat("split: the axis of size ", size.display(), " has no ", parts.display(),
                                " equal parts"));
  List list;
  for (int64_t i = 0; i < parts.number(); ++i)
    list.items.emplace_back(Tensors{build("slice", {tensor},
                                          {{"axis", Dim(static_cast<int64_t>(at))},
                                           {"begin", (*part * Dim(i)).without_name()},
                                           {"end", (*part * Dim(i + 1)).without_name()}},
                                          wish, e.place)});
  return list;
}

const std::map<std::string, Elaborator::Builtin>& Elaborator::builtins() {
  static const std::map<std::string, Builtin> table = {
      {"weight", [](Elaborator& self, const Expression& e, Frame& frame,
                    const std::string&) { return self.call_weight(e, frame); }},
      {"split", [](Elaborator& self, const Expression& e, Frame& frame,
                   const std::string& wish) { return self.call_split(e, frame, wish); }},
      {"dim",
       [](Elaborator& self, const Expression& e, Frame& frame, const std::string&) -> Value {
         const std::vector<const Argument*> given = self.match(e, {"x", "axis"}, 2);
         const Type type = self.graph_.type(self.tensor_argument(e, *given[0], frame));
         return type.shape[self.axis_argument(e, *given[1], type, frame)];
       }},
      {"last_dim",
       [](Elaborator& self, const Expression& e, Frame& frame, const std::string&) -> Value {
         const Type type = self.graph_.type(self.tensor_argument(e, *self.match(e, {"x"}, 1)[0], frame));
         if (type.shape.empty()) throw self.error(e.place, "last_dim of a scalar, which has no axes");
         return type.shape.back();
       }},
      {"rank",
       [](Elaborator& self, const Expression& e, Frame& frame, const std::string&) -> Value {
         return Dim(self.graph_.type(self.tensor_argument(e, *self.match(e, {"x"}, 1)[0], frame)).rank());
       }},
      {"shape",
       [](Elaborator& self, const Expression& e, Frame& frame, const std::string&) -> Value {
         List sizes;
         const Type type = self.graph_.type(self.tensor_argument(e, *self.match(e, {"x"}, 1)[0], frame));
         for (const Dim& dim : type.shape) sizes.items.emplace_back(dim);
         return sizes;
       }},
  };
  return table;
}

}  // namespace kumi::language
