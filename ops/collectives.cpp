// Collectives: what the ranks of a group of the mesh do together. Each rank has a graph like this one, and
// all of them reach the same collectives in the same order. Several operands travel together, as one
// operation; the i-th result is that of the i-th operand.
#include "codegen/collective.h"
#include "graph/op.h"
#include "ops/families.h"

namespace kumi {
namespace {

int64_t ranks_of(const Attributes& attributes) {
  return int_attribute(attributes, "ranks");
}

int64_t checked_ranks(const InferContext& context) {
  const Dim ranks = std::get<Dim>(*find_attribute(context.attributes, "ranks"));
  if (!ranks.is_number() || ranks.number() < 1) context.fail("'ranks' is not a number of 1 or more");
  return ranks.number();
}

using TypeRule = Type (*)(const InferContext&, size_t operand, int64_t ranks);

template <TypeRule rule>
std::vector<Type> infer(const InferContext& context) {
  const int64_t ranks = checked_ranks(context);
  std::vector<Type> results;
  for (size_t i = 0; i < context.operands.size(); ++i) results.push_back(rule(context, i, ranks));
  return results;
}

int64_t pieces_axis(const InferContext& context, size_t operand, int64_t ranks) {
  const Type& x = context.operand(operand);
  if (x.rank() == 0) context.fail("a scalar has no axis of pieces");
  if (!x.shape[0].is_number() || x.shape[0].number() % ranks != 0)
    context.fail(concat("the first axis of ", display(x), " does not fall into ", ranks, " equal pieces"));
  return x.shape[0].number() / ranks;
}

Type all_gather_type(const InferContext& context, size_t operand, int64_t ranks) {
  Type x = context.operand(operand);
  if (x.rank() == 0) context.fail("a scalar has no axis to gather along");
  x.shape[0] = x.shape[0] * Dim(ranks);
  return x;
}

void require_f32(const InferContext& context, size_t operand) {
  context.require_dtype(operand, DType::F32);
}

Type reduce_scatter_type(const InferContext& context, size_t operand, int64_t ranks) {
  require_f32(context, operand);
  Type x = context.operand(operand);
  x.shape[0] = pieces_axis(context, operand, ranks);
  return x;
}

Type all_reduce_type(const InferContext& context, size_t operand, int64_t) {
  require_f32(context, operand);
  return context.operand(operand);
}

Type all_to_all_type(const InferContext& context, size_t operand, int64_t ranks) {
  (void)pieces_axis(context, operand, ranks);
  return context.operand(operand);
}

template <CollectiveCall::Kind kind>
CollectiveCall call_of(const Graph& graph, const Node& node) {
  CollectiveCall call;
  call.kind = kind;
  call.group = *parse_mesh_group(string_attribute(node.attributes, "group"));
  call.ranks = ranks_of(node.attributes);
  for (ValueId operand : node.operands) {
    const Type& type = graph.type(operand);
    int64_t elements = element_count(type.shape).number();
    if (kind == CollectiveCall::kReduceScatter || kind == CollectiveCall::kAllToAll) elements /= call.ranks;
    call.segments.push_back({type.dtype, elements});
  }
  return call;
}

template <CollectiveCall::Kind kind, TypeRule rule>
void add(const std::string& doc, const std::string& operand_doc) {
  register_op({
      .name = to_string(kind),
      .family = "collectives",
      .doc = doc,
      .operands = {{"x", operand_doc, false, true}},
      .attributes = {{"group",
                      AttributeKind::kString,
                      "the ranks that take part",
                      std::nullopt,
                      {"world", "node", "cross_node"}},
                     {"ranks", AttributeKind::kInt, "how many they are", std::nullopt, {}}},
      .results = {"result"},
      .variadic_results = true,
      .infer = infer<rule>,
      .flops = [](const Graph&, const Node&) { return 0.0; },
      .collective = call_of<kind>,
  });
}

}  // namespace

void register_collective_ops() {
  add<CollectiveCall::kAllGather, all_gather_type>(
      "The operands of all ranks of the group, one after the other along the first axis.", "any type");
  add<CollectiveCall::kReduceScatter, reduce_scatter_type>(
      "Of the sum over the ranks of the group, cut into equal pieces along the first axis, this rank's "
      "piece.",
      "f32; the first axis is a multiple of ranks");
  add<CollectiveCall::kAllReduce, all_reduce_type>(
      "The sum over the ranks of the group, the same bits on each.", "f32");
  add<CollectiveCall::kAllToAll, all_to_all_type>(
      "Cuts the first axis into equal pieces and gives the i-th to the i-th rank of the group; the result "
      "has "
      "the pieces that the others have for this rank, one after the other.",
      "any type; the first axis is a multiple of ranks");
}

}  // namespace kumi
