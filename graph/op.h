// What an op must provide, and the look-up of ops by name.
//
// An op is one OpDef: documentation, operand and attribute schema, shape rule, gradient rule,
// cost, reference and lowering. The entries live in ops/ (one file a family; ops/all_ops.cpp lists
// the families); passes and the language find them here by name and know no op themselves.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graph/builder.h"
#include "graph/graph.h"

namespace kumi {

class KernelLowering;   // codegen/kernel_lowering.h
struct AttentionCall;   // codegen/kernel.h
struct MatmulCall;      // codegen/kernel.h
struct CollectiveCall;  // codegen/collective.h
struct Uses;            // graph/uses.h

struct OperandSpec {
  std::string name;
  std::string doc;
  bool optional = false;
  bool variadic = false;  // only the last: one or more of these
};

struct AttributeSpec {
  std::string name;
  AttributeKind kind = AttributeKind::kInt;
  std::string doc;
  std::optional<Attribute> default_value;  // none: must be given
  std::vector<std::string> choices;        // for strings; empty: any
};

// What the shape rule sees. Operands have been counted and attributes checked against the schema.
struct InferContext {
  const std::string& op;
  std::vector<const Type*> operands;  // nullptr for an optional operand left out
  const Attributes& attributes;

  const Type& operand(size_t i) const { return *operands[i]; }
  bool has(size_t i) const { return i < operands.size() && operands[i] != nullptr; }
  // Throws Error("<op>: <message>").
  [[noreturn]] void fail(const std::string& message) const;
  // Checks that throw with the operand's name and the symbolic spelling of its shape.
  void require_rank(size_t i, int rank) const;
  void require_floating(size_t i) const;
  void require_dtype(size_t i, DType dtype) const;
  void require_same(size_t i, size_t j) const;                                    // whole types equal
  void require_equal(const Dim& a, const Dim& b, const std::string& what) const;  // "<what> differ: a and b"
};

// What a gradient rule sees: the forward node and the gradients of its results. It builds nodes
// and returns one gradient an operand (kNone where there is none: integers, labels).
struct GradientContext {
  GraphBuilder& builder;
  const Node& node;
  std::vector<ValueId> result_gradients;  // kNone where the result does not reach the loss

  ValueId operand(size_t i) const { return node.operands[i]; }
  ValueId result(size_t i) const { return node.results[i]; }
  ValueId gradient(size_t i = 0) const { return result_gradients[i]; }
  // A copy, since building nodes moves the graph's values.
  Type type(ValueId value) const { return builder.graph().type(value); }
  // True if operand i needs a gradient; rules may skip work where not.
  std::vector<bool> needed;
};

// Work of one execution, for the cost model (graph/cost_model.h). Multiply and add count as two FLOPs.
struct Cost {
  double flops = 0;
  double bytes = 0;                  // read and written, each tensor once
  double product_flops = 0;          // of the flops, those of matrix products
  DType product_dtype = DType::F32;  // of the products' operands

  bool operator==(const Cost&) const = default;
};

// A tensor of the reference semantics: double precision, row-major.
struct ReferenceTensor {
  DType dtype = DType::F32;  // of the value that it stands for; integers are exact in a double
  std::vector<int64_t> shape;
  std::vector<double> data;

  int64_t size() const { return static_cast<int64_t>(data.size()); }
};

struct ReferenceContext {
  const Node& node;
  std::vector<const ReferenceTensor*> operands;  // nullptr for an optional operand left out
  std::vector<ReferenceTensor*> results;         // typed, shaped, zero-filled

  const ReferenceTensor& operand(size_t i) const { return *operands[i]; }
  ReferenceTensor& result(size_t i = 0) const { return *results[i]; }
  bool has(size_t i) const { return i < operands.size() && operands[i] != nullptr; }
};

// Valid values of an index operand: [0, limit), or `ignored`.
struct IndexRange {
  int64_t limit = 0;
  std::optional<int64_t> ignored;

  bool operator==(const IndexRange&) const = default;
};

// How an op may join a fused kernel (graph/passes/fuse.cpp, codegen/kernel_lowering.h).
enum class Fusion : uint8_t {
  kOpaque,     // a kernel or library call of its own
  kPointwise,  // result element i needs operand elements i only, after broadcasting
  kIndexing,   // result elements are picked from operands at computed indices (transpose, slice,
               // concat, gather, rope): may start a group, reading from memory
  kRow,        // reduces over the last axis, row by row (norms, softmax, row sums); its results
               // have the shape of the row space, or that with a last axis of 1
  kColumn,     // sums over all axes but the last, or over everything; ends a group
};

// In which type an op computes when products are to be in bf16 (graph/passes/precision.h).
enum class OpPrecision : uint8_t {
  kFull,  // in the types as written
  kLow,   // products: floating operands and the first result in bf16, sums in f32
  kAny,   // takes the operands as they come, and computes in f32 inside
};

struct OpDef {
  std::string name;
  std::string family;  // heading in the op reference
  std::string doc;     // what it computes, formula and source
  std::vector<OperandSpec> operands;
  std::vector<AttributeSpec> attributes = {};
  std::vector<std::string> results = {"result"};
  bool variadic_results = false;  // one or more, all called results[0]

  std::function<std::vector<Type>(const InferContext&)> infer;
  // Gradients by operand; null: not differentiable (a loss that needs it is an error).
  std::function<std::vector<ValueId>(GradientContext&)> gradient = nullptr;
  // Null: one FLOP a result element; bytes are always those of operands and results.
  std::function<double(const Graph&, const Node&)> flops = nullptr;
  // Almost all of them are those of matrix products, which machines do faster than others.
  bool is_product = false;
  std::function<void(const ReferenceContext&)> reference = nullptr;

  OpPrecision precision = OpPrecision::kFull;
  Fusion fusion = Fusion::kOpaque;
  // Overrides `fusion` where it depends on the node (a sum's axes). Null: `fusion`.
  std::function<Fusion(const Graph&, const Node&)> fusion_of = nullptr;
  // A view: results share the operand's storage, nothing runs (reshape).
  bool is_view = false;
  // Moves whole parts and computes nothing (concat, split; graph/parts.h): memory places the parts
  // inside the whole where it can, and only what it could not is copied.
  bool moves_parts = false;
  // Its results show what the operands hold, or hold it: nothing is computed.
  bool computes_nothing() const { return is_view || moves_parts; }
  // A kernel or library call of its own that takes and gives parts of larger values, as
  // KernelLowering::operand_layout() and result_layout() say. The last axis is without gaps.
  bool takes_strides = false;
  // An operand whose place in memory the first result may take: it is computed from the same elements.
  std::optional<size_t> overwrites_operand = std::nullopt;
  // Has an effect or stands for the outside (input, read, write): never removed or merged.
  bool is_state_access = false;
  // The kernel writes a part of the first result only and leaves the rest as it finds it: the result begins
  // as a copy of this operand, which is of its type. Where the operand's place can be taken, as that of a
  // state which the result is written to, nothing is copied.
  std::optional<size_t> in_place_operand = std::nullopt;  // if the node has it
  // A weight for averaging losses over several micro-batches: builds the number of terms of which
  // the (mean) result is an average. Null: 1.
  std::function<ValueId(GraphBuilder&, const Node&)> loss_weight = nullptr;

  // Operands that are indices into a table: the executor checks fed values against the range, since
  // kernels do not. Called with the operand's position; null or nothing: any value is fine.
  std::function<std::optional<IndexRange>(const Graph&, const Node&, size_t)> index_range = nullptr;

  // Lowering: at most one of the three; none for views and state access.
  std::function<void(KernelLowering&)> kernel = nullptr;  // generated
  std::function<MatmulCall(const Graph&, const Node&)> matmul =
      nullptr;  // by the device's library; operands then
                // results are the call's buffers
  std::function<CollectiveCall(const Graph&, const Node&)> collective =
      nullptr;  // by a communicator, while later nodes run: it is done when the first of them needs a
                // result; operands then results are the call's buffers
  // Beside a kernel: the same by the device's library, if that is worth asking for. Operands then results are
  // the buffers of both.
  std::function<std::optional<AttentionCall>(const Graph&, const Node&, const Uses&)> attention = nullptr;
};

// Adds an op; called by ops/ only, before anything else runs. A second entry of a name throws.
void register_op(OpDef op);
// The op, or nullptr.
const OpDef* find_op(const std::string& name);
// The op; throws Error with "did you mean".
const OpDef& op_of(const std::string& name);
inline const OpDef& op_of(const Node& node) {
  return op_of(node.op);
}
// All ops, by family and name.
std::vector<const OpDef*> all_ops();

// Checks operands and attributes against the schema, fills in default attributes (into schema
// order; an int given for a float attribute becomes a float), and applies the shape rule. Throws
// Error naming the op, the operand or attribute, what was expected, and "did you mean".
std::vector<Type> infer_types(const OpDef& op, const std::vector<const Type*>& operands,
                              Attributes* attributes);

// The operand that the node changes in place (OpDef::in_place_operand), or kNone.
ValueId operand_changed_in_place(const Node& node);

Cost cost_of(const Graph& graph, const Node& node);

// Bytes that the node reads of an operand: all, but where it picks elements (Fusion::kIndexing) no more
// elements than its results have. An embedding reads the rows that it takes, not the table.
double bytes_read(const Graph& graph, const Node& node, size_t operand);

}  // namespace kumi
