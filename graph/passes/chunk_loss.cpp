#include "graph/passes/chunk_loss.h"

#include <algorithm>
#include <map>
#include <set>

#include "graph/op.h"
#include "graph/rebuild.h"
#include "graph/rewrite.h"

namespace kumi {
namespace {

// Rows of a part are a multiple of this, so that parts begin at whole cache lines and tiles.
constexpr int64_t kMultiple = 64;

std::vector<int64_t> part_sizes(int64_t classes, int64_t parts) {
  int64_t size = (classes + parts - 1) / parts;
  if (size >= kMultiple) size = (size + kMultiple - 1) / kMultiple * kMultiple;
  std::vector<int64_t> sizes;
  for (int64_t begin = 0; begin < classes; begin += size) sizes.push_back(std::min(size, classes - begin));
  return sizes;
}

// A product without bias and addend.
bool is_product(const Node& node, bool transpose_a, bool transpose_b) {
  return node.op == "matmul" && bool_attribute(node.attributes, "transpose_a") == transpose_a &&
         bool_attribute(node.attributes, "transpose_b") == transpose_b &&
         std::all_of(node.operands.begin() + 2, node.operands.end(), [](ValueId v) { return v == kNone; });
}

class LossChunks : private Rebuild {
 public:
  LossChunks(const Graph& graph, int64_t parts) : Rebuild(graph), parts_(parts) {
    for (size_t n = 0; n < old_.nodes.size(); ++n)
      if (old_.nodes[n].op == "cross_entropy") find_head(static_cast<NodeId>(n));
  }

  bool has_found() const { return !heads_.empty(); }

  Graph run() {
    for (size_t n = 0; n < old_.nodes.size(); ++n) {
      const auto id = static_cast<NodeId>(n);
      if (const auto head = heads_.find(id); head != heads_.end())
        forward(&head->second);
      else if (const auto loss = loss_of_gradient_.find(id); loss != loss_of_gradient_.end())
        backward(heads_.at(loss->second));
      else if (replaced_.count(id) == 0)
        copy(old_.nodes[n]);
    }
    for (const Output& output : old_.outputs) new_.outputs.push_back({output.name, new_id_[output.value]});
    return std::move(new_);
  }

 private:
  struct Head {
    NodeId product = kNone, loss = kNone;
    NodeId gradient = kNone;                 // of the logits; kNone: there is none
    NodeId x_product = kNone;                // the gradient of x; kNone: not needed
    NodeId weight_product = kNone;           // that of the weight
    std::vector<int64_t> sizes;              // of the parts
    std::vector<ValueId> weights;            // the parts, once built
    ValueId last_logits = kNone;             // of the last part
    ValueId largest = kNone, total = kNone;  // of each row
  };

  // ---- finding

  // The value, or what it is another shape of.
  ValueId viewed(ValueId value) const {
    const Node& producer = old_.producer(value);
    return producer.op == "reshape" ? viewed(producer.operands[0]) : value;
  }

  void find_head(NodeId loss) {
    Head head;
    head.loss = loss;
    const Node& entropy = old_.nodes[loss];
    const ValueId logits = entropy.operands[0];
    head.product = old_.values[logits].producer;
    const Node& product = old_.nodes[head.product];
    if (!is_product(product, false, true) || old_.type(product.operands[1]).rank() != 2) return;
    if (uses_.is_output[logits]) return;
    for (NodeId consumer : uses_.consumers[logits]) {
      const Node& node = old_.nodes[consumer];
      if (consumer == loss) continue;
      if (node.op != "cross_entropy_grad" || node.operands[1] != entropy.operands[1] ||
          node.operands[2] != entropy.results[3] || head.gradient != kNone)
        return;
      head.gradient = consumer;
    }
    std::set<NodeId> replaced = {head.product};
    if (head.gradient != kNone && !find_gradients(old_.nodes[head.gradient].results[0], &head, &replaced))
      return;
    head.sizes = part_sizes(old_.type(product.operands[1]).shape[0].number(), parts_);
    replaced_.insert(replaced.begin(), replaced.end());
    if (head.gradient != kNone) loss_of_gradient_[head.gradient] = loss;
    heads_[loss] = std::move(head);
  }

  // The products that look at the gradient of the logits, through reshapes. False if something else does.
  bool find_gradients(ValueId dlogits, Head* head, std::set<NodeId>* replaced) const {
    const Node& product = old_.nodes[head->product];
    if (uses_.is_output[dlogits]) return false;
    for (NodeId consumer : uses_.consumers[dlogits]) {
      const Node& node = old_.nodes[consumer];
      replaced->insert(consumer);
      if (node.op == "reshape") {
        if (!find_gradients(node.results[0], head, replaced)) return false;
        continue;
      }
      const bool is_of_x = is_product(node, false, false) && node.operands[0] == dlogits &&
                           node.operands[1] == product.operands[1];
      const bool is_of_weight = is_product(node, true, false) && node.operands[0] == dlogits &&
                                viewed(node.operands[1]) == viewed(product.operands[0]) &&
                                old_.type(node.operands[1]).rank() == 2;
      NodeId& place = is_of_x ? head->x_product : head->weight_product;
      if ((!is_of_x && !is_of_weight) || place != kNone) return false;
      place = consumer;
    }
    return true;
  }

  // ---- building

  // The op's own attributes, and which of all classes it is about.
  static Attributes of_part(const Node& entropy, int64_t first, int64_t classes) {
    return {{"ignore", *find_attribute(entropy.attributes, "ignore")},
            {"first", Dim(first)},
            {"classes", Dim(classes)}};
  }

  ValueId logits_of(const Head& head, size_t part, const char* name) {
    const Node& product = old_.nodes[head.product];
    stand_for(product);
    return builder_.call("matmul", {translated(product.operands[0]), head.weights[part]}, product.attributes,
                         concat(old_.values[product.results[0]].name, name, part));
  }

  void forward(Head* head) {
    const Node &product = old_.nodes[head->product], &entropy = old_.nodes[head->loss];
    const ValueId labels = translated(entropy.operands[1]);
    stand_for(product);
    head->weights =
        builder_.build("split", {translated(product.operands[1])},
                       {{"axis", Dim(0)}, {"sizes", Shape(head->sizes.begin(), head->sizes.end())}},
                       concat(old_.values[product.operands[1]].name, ".part"));
    const int64_t classes = old_.type(product.operands[1]).shape[0].number();
    std::vector<ValueId> rows;
    int64_t first = 0;
    for (size_t part = 0; part < head->sizes.size(); ++part) {
      std::vector<ValueId> operands = {head->last_logits = logits_of(*head, part, ".part"), labels};
      operands.insert(operands.end(), rows.begin(), rows.end());
      stand_for(entropy);
      rows = builder_.build("cross_entropy_part", operands, of_part(entropy, first, classes));
      first += head->sizes[part];
    }
    head->largest = rows[0];
    head->total = rows[1];
    std::vector<ValueId> results = builder_.build("cross_entropy_mean", {labels, rows[0], rows[1], rows[2]},
                                                  entropy.attributes, old_.values[entropy.results[0]].name);
    results.insert(results.end(), {head->largest, head->total});
    record(entropy, results);
  }

  void backward(const Head& head) {
    const Node &entropy = old_.nodes[head.loss], &gradient = old_.nodes[head.gradient],
               &product = old_.nodes[head.product];
    const int64_t classes = old_.type(product.operands[1]).shape[0].number();
    std::vector<ValueId> operands;
    for (ValueId operand : gradient.operands) operands.push_back(translated(operand));
    ValueId dx = kNone;
    std::vector<ValueId> dweights(head.sizes.size(), kNone);
    int64_t first = classes;
    for (size_t part = head.sizes.size(); part-- > 0;) {
      first -= head.sizes[part];
      operands[0] = head.last_logits;
      if (part + 1 < head.sizes.size()) {
        operands[0] = logits_of(head, part, ".again");
        new_.nodes.back().recomputed = true;
      }
      stand_for(gradient);
      const ValueId dlogits = builder_.call("cross_entropy_grad", operands, of_part(entropy, first, classes));
      if (head.x_product != kNone) dx = add_product(head, dlogits, head.weights[part], dx);
      if (head.weight_product != kNone) dweights[part] = weight_gradient(head, dlogits);
    }
    if (dx != kNone) {
      const Node& node = old_.nodes[head.x_product];
      stand_for(node);
      const DType dtype = old_.type(node.results[0]).dtype;
      if (new_.type(dx).dtype != dtype) dx = builder_.call("cast", {dx}, {{"dtype", dtype}});
      record(node, {dx});
    }
    if (head.weight_product != kNone) {
      const Node& node = old_.nodes[head.weight_product];
      stand_for(node);
      record(node,
             {builder_.call("concat", dweights, {{"axis", Dim(0)}}, old_.values[node.results[0]].name)});
    }
  }

  // dx, the sum so far (or kNone), and dlogits times the weights of its part; in f32.
  ValueId add_product(const Head& head, ValueId dlogits, ValueId weight, ValueId dx) {
    const Node& node = old_.nodes[head.x_product];
    stand_for(node);
    Attributes attributes = node.attributes;
    set_attribute(&attributes, "f32_result", true);
    std::vector<ValueId> operands = {dlogits, weight};
    if (dx != kNone) operands.insert(operands.end(), {kNone, dx});
    return builder_.call("matmul", operands, attributes);
  }

  ValueId weight_gradient(const Head& head, ValueId dlogits) {
    const Node& node = old_.nodes[head.weight_product];
    const ValueId x = translated(old_.nodes[head.product].operands[0]);
    stand_for(node);
    return builder_.call("matmul", {as_rows(dlogits), as_rows(x)}, node.attributes);
  }

  // [..., n] as [rows, n].
  ValueId as_rows(ValueId value) {
    const Shape shape = new_.type(value).shape;
    if (shape.size() == 2) return value;
    return builder_.reshape(value, {element_count(Shape(shape.begin(), shape.end() - 1)), shape.back()});
  }

  const int64_t parts_;
  std::map<NodeId, Head> heads_;               // by the loss
  std::map<NodeId, NodeId> loss_of_gradient_;  // by the gradient of the logits
  std::set<NodeId> replaced_;
};

// What a training step shows besides the loss and gradients is left out later anyway
// (PlanOptions::keep_outputs): here already, so that nothing else needs the logits.
void leave_out_other_outputs(Graph* graph, const PlanOptions& options) {
  std::erase_if(graph->outputs, [&](const Output& output) {
    return output.name != options.loss && !output.name.starts_with("grad.");
  });
  *graph = remove_dead_nodes(*graph);
}

}  // namespace

Module chunk_loss(Module module, const PlanOptions& options) {
  Graph* graph = module.find_graph("gradient");
  if (options.loss_chunks < 2 || graph == nullptr) return module;
  if (options.goal == Goal::kTrain && !options.keep_outputs) leave_out_other_outputs(graph, options);
  LossChunks chunks(*graph, options.loss_chunks);
  if (!chunks.has_found() && options.goal != Goal::kTrain) return module;  // logits are asked for
  if (!chunks.has_found())
    throw Error("there are no logits to compute by parts of the vocabulary, as plan.loss_chunks asks for")
        .expected(
            "cross_entropy of matmul(x, weight, transpose_b = true), without a bias, where nothing else "
            "looks at the product");
  *graph = merge_equal_nodes(chunks.run());
  return module;
}

}  // namespace kumi
