// The registry of ops, and the checks that every use of an op goes through.
#include "graph/op.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "graph/uses.h"

namespace kumi {
namespace {

std::map<std::string, OpDef>& registry() {
  static std::map<std::string, OpDef> ops;
  return ops;
}

std::vector<std::string> op_names() {
  std::vector<std::string> names;
  for (const auto& entry : registry()) names.push_back(entry.first);
  return names;
}

// "matmul(a, b, [bias])", for messages.
std::string signature(const OpDef& op) {
  std::string text;
  for (const OperandSpec& operand : op.operands)
    text += concat(text.empty() ? "" : ", ", operand.optional ? "[" : "", operand.name,
                   operand.variadic ? ", ..." : "", operand.optional ? "]" : "");
  return concat(op.name, "(", text, ")");
}

std::string operand_name(const OpDef& op, size_t i) {
  if (op.operands.empty()) return concat("operand ", i);
  return op.operands[std::min(i, op.operands.size() - 1)].name;
}

void check_operands(const OpDef& op, const std::vector<const Type*>& operands) {
  const bool variadic = !op.operands.empty() && op.operands.back().variadic;
  const size_t least = static_cast<size_t>(std::count_if(
      op.operands.begin(), op.operands.end(), [](const OperandSpec& spec) { return !spec.optional; }));
  if (operands.size() > op.operands.size() && !variadic)
    throw Error(concat(op.name, ": ", operands.size(), " operands")).expected(signature(op));
  for (size_t i = 0; i < std::max(operands.size(), least); ++i) {
    const bool optional = i < op.operands.size() && op.operands[i].optional;
    const bool given = i < operands.size() && operands[i] != nullptr;
    if (!given && !optional)
      throw Error(concat(op.name, ": the operand '", operand_name(op, i), "' is missing"))
          .expected(signature(op));
  }
}

// The given attribute as the schema's kind, or an Error.
Attribute converted(const OpDef& op, const AttributeSpec& spec, const Attribute& given) {
  Attribute value = given;
  if (spec.kind == AttributeKind::kFloat)
    if (const Dim* integer = std::get_if<Dim>(&given)) value = static_cast<double>(integer->number());
  if (kind_of(value) != spec.kind)
    throw Error(concat(op.name, ": the attribute '", spec.name, "' is ", to_string(given), ", of the kind ",
                       to_string(kind_of(given))))
        .expected(to_string(spec.kind));
  if (!spec.choices.empty()) {
    const std::string& text = std::get<std::string>(value);
    if (std::find(spec.choices.begin(), spec.choices.end(), text) == spec.choices.end()) {
      std::string list;
      for (const std::string& choice : spec.choices) list += (list.empty() ? "" : ", ") + quoted(choice);
      throw Error(concat(op.name, ": the attribute '", spec.name, "' is ", quoted(text)))
          .expected("one of " + list)
          .hint(did_you_mean(text, spec.choices));
    }
  }
  return value;
}

void complete_attributes(const OpDef& op, Attributes* attributes) {
  std::vector<std::string> names;
  for (const AttributeSpec& spec : op.attributes) names.push_back(spec.name);
  for (size_t i = 0; i < attributes->size(); ++i) {
    const std::string& name = (*attributes)[i].first;
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      throw Error(concat(op.name, ": there is no attribute '", name, "'"))
          .expected(names.empty() ? "no attributes" : "one of " + joined(names))
          .hint(did_you_mean(name, names));
    }
    for (size_t j = 0; j < i; ++j)
      if ((*attributes)[j].first == name)
        throw Error(concat(op.name, ": the attribute '", name, "' is given twice"));
  }
  Attributes complete;
  for (const AttributeSpec& spec : op.attributes) {
    if (const Attribute* given = find_attribute(*attributes, spec.name))
      complete.emplace_back(spec.name, converted(op, spec, *given));
    else if (spec.default_value)
      complete.emplace_back(spec.name, *spec.default_value);
    else
      throw Error(concat(op.name, ": the attribute '", spec.name, "' is missing"))
          .expected(concat(spec.name, " = ", to_string(spec.kind), ", ", spec.doc));
  }
  *attributes = std::move(complete);
}

std::string operand_label(const InferContext& context, size_t i) {
  return concat("'", operand_name(op_of(context.op), i), "'");
}

}  // namespace

void InferContext::fail(const std::string& message) const {
  throw Error(concat(op, ": ", message));
}

void InferContext::require_rank(size_t i, int rank) const {
  if (operand(i).rank() == rank) return;
  fail(concat(operand_label(*this, i), " needs ", rank, rank == 1 ? " axis" : " axes", ", found ",
              display(operand(i))));
}

void InferContext::require_floating(size_t i) const {
  if (is_floating(operand(i).dtype)) return;
  fail(concat(operand_label(*this, i), " needs a floating-point type, found ", display(operand(i))));
}

void InferContext::require_dtype(size_t i, DType dtype) const {
  if (operand(i).dtype == dtype) return;
  fail(
      concat(operand_label(*this, i), " needs the type ", to_string(dtype), ", found ", display(operand(i))));
}

void InferContext::require_same(size_t i, size_t j) const {
  if (operand(i) == operand(j)) return;
  fail(concat(operand_label(*this, i), " and ", operand_label(*this, j), " need the same type, found ",
              display(operand(i)), " and ", display(operand(j))));
}

void InferContext::require_equal(const Dim& a, const Dim& b, const std::string& what) const {
  if (!(a == b)) fail(concat(what, " differ: ", a.display(), " and ", b.display()));
}

void register_op(OpDef op) {
  const std::string name = op.name;
  if (!op.infer) throw Error(concat("the op '", name, "' has no shape rule"));
  if (!registry().emplace(name, std::move(op)).second)
    throw Error(concat("the op '", name, "' is registered twice"));
}

const OpDef* find_op(const std::string& name) {
  auto found = registry().find(name);
  return found == registry().end() ? nullptr : &found->second;
}

const OpDef& op_of(const std::string& name) {
  if (const OpDef* op = find_op(name)) return *op;
  throw Error(concat("unknown op '", name, "'")).hint(did_you_mean(name, op_names()));
}

std::vector<const OpDef*> all_ops() {
  std::vector<const OpDef*> ops;
  for (const auto& entry : registry()) ops.push_back(&entry.second);
  std::stable_sort(ops.begin(), ops.end(),
                   [](const OpDef* a, const OpDef* b) { return a->family < b->family; });
  return ops;
}

std::vector<Type> infer_types(const OpDef& op, const std::vector<const Type*>& operands,
                              Attributes* attributes) {
  check_operands(op, operands);
  complete_attributes(op, attributes);
  std::vector<Type> types = op.infer(InferContext{op.name, operands, *attributes});
  for (const Type& type : types) (void)element_count(type.shape);  // throws if it does not fit into 64 bits
  return types;
}

ValueId operand_changed_in_place(const Node& node) {
  const std::optional<size_t> position = op_of(node).in_place_operand;
  return position && *position < node.operands.size() ? node.operands[*position] : kNone;
}

Cost cost_of(const Graph& graph, const Node& node) {
  const OpDef& op = op_of(node);
  Cost cost;
  if (op.is_view || op.is_state_access) return cost;
  for (size_t i = 0; i < node.operands.size(); ++i) cost.bytes += bytes_read(graph, node, i);
  for (ValueId result : node.results) cost.bytes += static_cast<double>(byte_count(graph.type(result)));
  // Of which as much is written as the other operands have. A product writes all of it.
  if (operand_changed_in_place(node) != kNone && !op.matmul) {
    const auto whole = static_cast<double>(byte_count(graph.type(node.results[0])));
    cost.bytes = 2 * (cost.bytes - 2 * whole);
  }
  if (op.flops)
    cost.flops = op.flops(graph, node);
  else
    for (ValueId result : node.results)
      cost.flops += static_cast<double>(element_count(graph.type(result).shape).number());
  if (op.is_product) {
    cost.product_flops = cost.flops;
    cost.product_dtype = graph.type(node.operands[0]).dtype;
  }
  return cost;
}

double bytes_read(const Graph& graph, const Node& node, size_t operand) {
  if (node.operands[operand] == kNone) return 0;
  const Type& type = graph.type(node.operands[operand]);
  int64_t elements = element_count(type.shape).number();
  if (fusion_of(graph, node) == Fusion::kIndexing) {
    int64_t picked = 0;
    for (ValueId result : node.results) picked += element_count(graph.type(result).shape).number();
    elements = std::min(elements, picked);
  }
  return static_cast<double>(elements) * static_cast<double>(size_of(type.dtype));
}

}  // namespace kumi
