#include "frontend/language/flat.h"

#include <cmath>
#include <unordered_map>

#include "graph/op.h"

namespace kumi::language {
namespace {

class FlatReader {
 public:
  FlatReader(const ModelSyntax& model, Diagnostics& diagnostics)
      : syntax_(model), diagnostics_(diagnostics) {}

  Module run() {
    module_.name = syntax_.name;
    for (const Argument& parameter : syntax_.parameters)
      guarded([&] {
        if (parameter.value.empty())
          throw error(parameter.place, concat("the parameter '", parameter.name, "' has no value"));
        module_.parameters.emplace_back(parameter.name, attribute(parameter.value[0]));
      });
    for (const Statement& statement : syntax_.body) top(statement);
    diagnostics_.throw_if_any();
    return std::move(module_);
  }

 private:
  Error error(Place place, const std::string& what) const {
    return Error(what).at({diagnostics_.file(), place.line, place.column});
  }

  // Reports what the function throws, so that the next line can be read.
  template <typename Function>
  void guarded(Function function) {
    try {
      function();
    } catch (Error& failure) {
      diagnostics_.report(std::move(failure));
    }
  }

  void top(const Statement& s) {
    if (diagnostics_.is_full()) return;
    switch (s.kind) {
      case Statement::kScope:
        if (s.label) break;
        for (const Statement& inner : s.body) top(inner);
        return;
      case Statement::kSource:
        source_ = s.text;
        return;
      case Statement::kPasses:
        module_.passes.insert(module_.passes.end(), s.names.begin(), s.names.end());
        return;
      case Statement::kSize:
        guarded([&] {
          std::optional<Dim> value;
          if (s.value) value = size(*s.value);
          module_.sizes.emplace_back(s.name, std::move(value));
        });
        return;
      case Statement::kMesh:
        module_.mesh = {s.nodes, s.local};
        return;
      case Statement::kState:
        guarded([&] { state(s); });
        return;
      case Statement::kGraph:
        graph(s);
        return;
      default:
        break;
    }
    diagnostics_.report(error(s.place, "a dump has states and graphs, no other statements"));
  }

  SourceLocation location(const std::optional<Origin>& origin) const {
    if (!origin) return {};
    return {origin->file.empty() ? source_ : origin->file, origin->line, origin->column};
  }

  void state(const Statement& s) {
    State state;
    const std::optional<State::Kind> kind = parse_state_kind(s.name);
    if (!kind)
      throw error(s.place, concat("there is no kind of state '", s.name, "'"))
          .expected(joined(state_kind_names()))
          .hint(did_you_mean(s.name, state_kind_names()));
    state.kind = *kind;
    state.name = s.text;
    state.type = type(*s.type);
    state.initializer = initializer(*s.value);
    state.offset = s.state_offset;
    for (const std::string& name : s.cut) {
      const std::optional<MeshGroup> group = parse_mesh_group(name);
      if (!group)
        throw error(s.place, concat("the mesh has no group '", name, "'"))
            .expected("world, node or cross_node")
            .hint(did_you_mean(name, {"world", "node", "cross_node"}));
      state.cut.push_back(*group);
    }
    for (const FlatTensorSyntax& tensor : s.tensors) {
      Shape shape;
      for (const Expression& e : tensor.sizes) shape.push_back(size(e));
      state.tensors.push_back({tensor.name, std::move(shape), initializer(tensor.initializer)});
    }
    state.location = location(s.annotations.origin);
    module_.states.push_back(std::move(state));
  }

  Initializer initializer(const Expression& e) {
    const std::optional<Initializer::Kind> kind = parse_initializer_kind(e.text);
    if (kind && !has_parameter(*kind) && e.kind == Expression::kName) return {*kind, 0};
    if (kind && has_parameter(*kind) && e.kind == Expression::kCall && e.arguments.size() == 1) {
      const Attribute parameter = attribute(e.arguments[0].value[0]);
      if (const double* number = std::get_if<double>(&parameter)) return {*kind, *number};
      if (const Dim* number = std::get_if<Dim>(&parameter))
        return {*kind, static_cast<double>(number->number())};
    }
    throw error(e.place, "this is no initializer")
        .expected("zeros, ones, constant(x), normal(x) or uniform(x)");
  }

  // ---------------------------------------------------------------------------------------- graphs

  void graph(const Statement& s) {
    Graph graph;
    graph.name = s.name;
    graph.arena_bytes = s.arena_bytes;
    graph.arena_lower_bound = s.arena_lower_bound;
    values_.clear();
    lines(s.body, "", &graph);
    module_.graphs.push_back(std::move(graph));
  }

  void lines(const std::vector<Statement>& body, const std::string& scope, Graph* graph) {
    for (const Statement& s : body) {
      if (diagnostics_.is_full()) return;
      if (s.kind == Statement::kScope) {
        if (s.label && s.label->kind != Expression::kString)
          diagnostics_.report(error(s.label->place, "the scope's name must be a string"));
        lines(s.body, s.label ? s.label->text : scope, graph);
      } else if (s.kind == Statement::kAssign) {
        guarded([&] { node(s, scope, graph); });
      } else if (s.kind == Statement::kOutput) {
        guarded([&] { graph->outputs.push_back({s.name, operand(*s.value)}); });
      } else {
        diagnostics_.report(error(s.place, "a graph has nodes and outputs, no other statements"));
      }
    }
  }

  ValueId operand(const Expression& e) const {
    if (e.kind == Expression::kNothing) return kNone;
    if (e.kind != Expression::kName) throw error(e.place, "an operand must be a value's name or _");
    auto found = values_.find(e.text);
    if (found != values_.end()) return found->second;
    std::vector<std::string> names;
    for (const auto& entry : values_) names.push_back(entry.first);
    throw error(e.place, concat("there is no value '", e.text, "' before this line"))
        .hint(did_you_mean(e.text, names));
  }

  void node(const Statement& s, const std::string& scope, Graph* graph) {
    const Expression& call = *s.value;
    if (call.kind != Expression::kCall) {
      for (const Target& target : s.targets) values_.emplace(target.name, kNone);
      throw error(call.place, "a node must be the call of an op");
    }
    Node node;
    node.op = call.text;
    node.scope = scope;
    node.location = location(s.annotations.origin);
    node.group = s.annotations.group;
    node.stream = s.annotations.stream;
    node.recomputed = s.annotations.recomputed;
    const OpDef* op = nullptr;
    std::vector<Type> types;
    try {
      op = &op_of(node.op);
      std::vector<const Type*> operand_types;
      for (const Argument& argument : call.arguments) {
        if (argument.name.empty()) {
          node.operands.push_back(operand(argument.value[0]));
          operand_types.push_back(node.operands.back() == kNone ? nullptr
                                                                : &graph->type(node.operands.back()));
        } else {
          node.attributes.emplace_back(argument.name,
                                       attribute(argument.value[0], kind_of_attribute(*op, argument.name)));
        }
      }
      take_from_type(*op, s, &node.attributes);
      types = infer_types(*op, operand_types, &node.attributes);
    } catch (Error& failure) {
      if (!failure.location().known()) failure.at({diagnostics_.file(), call.place.line, call.place.column});
      throw;
    }
    if (types.size() != s.targets.size())
      throw error(s.place,
                  concat("'", node.op, "' has ", types.size(), types.size() == 1 ? " result" : " results",
                         ", the line names ", s.targets.size()));
    for (size_t i = 0; i < types.size(); ++i) add_value(s.targets[i], std::move(types[i]), i, &node, graph);
    graph->nodes.push_back(std::move(node));
  }

  void add_value(const Target& target, Type inferred, size_t i, Node* node, Graph* graph) {
    Value value;
    value.name = target.name;
    value.type = std::move(inferred);
    if (target.type) {
      Type declared = type(*target.type);
      if (declared != value.type)
        throw error(target.type->place,
                    concat("'", target.name, "' is declared as ", kumi::display(declared)))
            .expected(concat(kumi::display(value.type), ", what '", node->op, "' gives"));
      value.type = std::move(declared);  // with the names of its sizes
    }
    value.producer = static_cast<NodeId>(graph->nodes.size());
    value.result_index = static_cast<int32_t>(i);
    if (target.memory)
      value.placement = Placement{target.memory->state, target.memory->offset, target.memory->strides};
    const ValueId id = static_cast<ValueId>(graph->values.size());
    if (!values_.emplace(value.name, id).second)
      throw error(target.place, concat("two values are named '", value.name, "'"));
    node->results.push_back(id);
    graph->values.push_back(std::move(value));
  }

  // The attributes dtype and shape, where the line leaves them out, are those of the result's type.
  void take_from_type(const OpDef& op, const Statement& s, Attributes* attributes) {
    if (s.targets.size() != 1 || !s.targets[0].type) return;
    for (const AttributeSpec& spec : op.attributes) {
      if (find_attribute(*attributes, spec.name) != nullptr) continue;
      if (spec.name == "dtype" && spec.kind == AttributeKind::kDType)
        attributes->emplace_back(spec.name, type(*s.targets[0].type).dtype);
      else if (spec.name == "shape" && spec.kind == AttributeKind::kShape)
        attributes->emplace_back(spec.name, type(*s.targets[0].type).shape);
    }
  }

  static std::optional<AttributeKind> kind_of_attribute(const OpDef& op, const std::string& name) {
    for (const AttributeSpec& spec : op.attributes)
      if (spec.name == name) return spec.kind;
    return std::nullopt;
  }

  // --------------------------------------------------------------------------------------- literals

  Type type(const TypeSyntax& syntax) {
    const std::optional<DType> dtype = parse_dtype(syntax.dtype);
    if (!dtype) throw error(syntax.place, concat("there is no element type '", syntax.dtype, "'"));
    Type type{*dtype, {}};
    for (const Expression& e : syntax.sizes) type.shape.push_back(size(e));
    return type;
  }

  // A polynomial of free sizes, perhaps with a name.
  Dim size(const Expression& e) {
    switch (e.kind) {
      case Expression::kInteger:
        return Dim(e.integer);
      case Expression::kName:
        return Dim::symbol(e.text);
      case Expression::kNamedSize:
        return Dim::named(e.text, size(e.children[0]));
      case Expression::kUnary:
        if (e.text == "-") return Dim(0) - size(e.children[0]);
        break;
      case Expression::kBinary: {
        if (e.text == "+") return size(e.children[0]) + size(e.children[1]);
        if (e.text == "-") return size(e.children[0]) - size(e.children[1]);
        if (e.text == "*") return size(e.children[0]) * size(e.children[1]);
        break;
      }
      default:
        break;
    }
    throw error(e.place, "this is no size").expected("a whole number or a polynomial of free sizes");
  }

  static std::optional<double> special_number(const Expression& e) {
    if (e.kind == Expression::kName && e.text == "inf") return HUGE_VAL;
    if (e.kind == Expression::kName && e.text == "nan") return std::nan("");
    if (e.kind != Expression::kUnary || e.text != "-") return std::nullopt;
    std::optional<double> positive = special_number(e.children[0]);
    return positive ? std::optional<double>(-*positive) : std::nullopt;
  }

  // `kind`, where it is known, decides what a bare name is.
  Attribute attribute(const Expression& e, std::optional<AttributeKind> kind = std::nullopt) {
    switch (e.kind) {
      case Expression::kBool:
        return e.integer != 0;
      case Expression::kFloat:
        return e.number;
      case Expression::kString:
        return e.text;
      case Expression::kList: {
        Shape shape;
        for (const Expression& child : e.children) shape.push_back(size(child));
        return shape;
      }
      default:
        break;
    }
    if (kind != AttributeKind::kInt && e.kind == Expression::kName)
      if (std::optional<DType> dtype = parse_dtype(e.text)) return *dtype;
    if (kind != AttributeKind::kInt)
      if (std::optional<double> number = special_number(e)) return *number;
    return size(e);
  }

  const ModelSyntax& syntax_;
  Diagnostics& diagnostics_;
  Module module_;
  std::string source_;
  std::unordered_map<std::string, ValueId> values_;  // of the graph that is read
};

}  // namespace

bool is_flat(const ModelSyntax& model) {
  for (const Statement& s : model.body)
    if (s.kind == Statement::kState || s.kind == Statement::kGraph || s.kind == Statement::kPasses ||
        s.kind == Statement::kSource)
      return true;
  return false;
}

Module read_flat(const ModelSyntax& model, Diagnostics& diagnostics) {
  return FlatReader(model, diagnostics).run();
}

}  // namespace kumi::language
