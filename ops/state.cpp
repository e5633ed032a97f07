// What touches the outside of a graph: inputs, states that live from step to step, and constants.
//
// A `read` gives the state as it was before the graph ran, wherever it stands; a `write` takes effect
// after every read. Neither runs anything if memory allows: the memory pass places what is read in the
// state's own storage, and lets what is written be computed there.
#include <cmath>

#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "ops/families.h"

namespace kumi {
namespace {

std::vector<Type> infer_declared(const InferContext& context) {
  return {{dtype_attribute(context.attributes, "dtype"), shape_attribute(context.attributes, "shape")}};
}

std::vector<Type> infer_constant(const InferContext& context) {
  Type type = infer_declared(context)[0];
  double value = float_attribute(context.attributes, "value");
  if (is_floating(type.dtype)) return {type};
  constexpr double kLargestExact = 9007199254740992;  // 2^53: every integer up to it is a double
  double lowest = 0, highest = 1;
  switch (type.dtype) {
    case DType::I32:
      lowest = -2147483648.0;
      highest = 2147483647.0;
      break;
    case DType::I64:
      lowest = -kLargestExact;
      highest = kLargestExact;
      break;
    case DType::U8:
      highest = 255;
      break;
    default:
      break;
  }
  if (!(value >= lowest && value <= highest) || value != std::floor(value))
    context.fail(concat("the value ", float_to_string(value), " is none of the type ", to_string(type.dtype),
                        ", whose constants are integers from ", float_to_string(lowest), " to ",
                        float_to_string(highest)));
  return {type};
}

void lower_constant(KernelLowering& k) {
  Expr value = constant(k.result_type(0).dtype, float_attribute(k.attributes(), "value"));
  k.pointwise([value](const std::vector<Expr>&) { return std::vector<Expr>{value}; });
}

void reference_constant(const ReferenceContext& context) {
  for (double& x : context.result().data) x = float_attribute(context.node.attributes, "value");
}

double no_flops(const Graph&, const Node&) {
  return 0;
}

AttributeSpec required(const std::string& name, AttributeKind kind, const std::string& doc) {
  return {name, kind, doc, std::nullopt, {}};
}

}  // namespace

void register_state_ops() {
  register_op({
      .name = "input",
      .family = "state",
      .doc = "A value that is fed before every run of the graph.",
      .operands = {},
      .attributes = {required("name", AttributeKind::kString, "under which it is fed"),
                     required("dtype", AttributeKind::kDType, "element type"),
                     required("shape", AttributeKind::kShape, "sizes, which may be free")},
      .infer = infer_declared,
      .flops = no_flops,
      .is_state_access = true,
  });
  register_op({
      .name = "read",
      .family = "state",
      .doc = "The value of a state (a weight, a moment, a counter) as it was before the graph ran.",
      .operands = {},
      .attributes = {required("state", AttributeKind::kString, "name of the state"),
                     required("dtype", AttributeKind::kDType, "its element type"),
                     required("shape", AttributeKind::kShape, "its sizes")},
      .infer = infer_declared,
      .flops = no_flops,
      .is_state_access = true,
  });
  register_op({
      .name = "write",
      .family = "state",
      .doc = "Gives a state a new value, which the next run of a graph reads. At most one a state and graph.",
      .operands = {{"value", "of the state's type"}},
      .attributes = {required("state", AttributeKind::kString, "name of the state")},
      .results = {},
      .infer = [](const InferContext&) { return std::vector<Type>{}; },
      .flops = no_flops,
      .is_state_access = true,
  });
  register_op({
      .name = "constant",
      .family = "state",
      .doc = "A tensor whose elements all have the same value. It is written into the kernels that use it, "
             "and takes memory only where a library call or an output needs it.",
      .operands = {},
      .attributes = {required("value", AttributeKind::kFloat,
                              "of every element; an integer for integer types"),
                     {"dtype", AttributeKind::kDType, "element type", Attribute(DType::F32), {}},
                     {"shape", AttributeKind::kShape, "sizes; empty for a scalar", Attribute(Shape{}), {}}},
      .infer = infer_constant,
      .flops = no_flops,
      .reference = reference_constant,
      .fusion = Fusion::kPointwise,
      .kernel = lower_constant,
  });
}

}  // namespace kumi
