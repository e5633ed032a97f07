#include "frontend/feeds.h"

#include "graph/error.h"

namespace kumi {
namespace {

std::string described(const TensorView& tensor) {
  return concat(to_string(tensor.dtype), to_string(tensor.shape));
}

// Solves coefficient * symbol + constant = number, if that is the polynomial's form.
std::optional<std::pair<std::string, int64_t>> solve(const Dim& dim, int64_t number) {
  if (dim.terms().size() != 1 || dim.terms()[0].symbols.size() != 1) return std::nullopt;
  const Dim::Term& term = dim.terms()[0];
  const std::optional<Dim> quotient = Dim::divide_exact(Dim(number) - Dim(dim.constant()), term.coefficient);
  if (!quotient || quotient->number() < 1) return std::nullopt;
  return std::make_pair(term.symbols[0], quotient->number());
}

struct Binding {
  int64_t number = 0;
  std::string by;  // for messages
};

}  // namespace

std::vector<Feed> feeds_from_file(const Graph& graph, const SafetensorsFile& file,
                                  std::optional<int64_t> index) {
  std::vector<Feed> feeds;
  bool index_used = false;
  for (NodeId n : graph.inputs()) {
    const std::string& name = string_attribute(graph.nodes[n].attributes, "name");
    const Type& type = graph.type(graph.nodes[n].results[0]);
    const TensorView* tensor = file.find(name);
    if (tensor == nullptr)
      throw Error(concat("there is no tensor for the input '", name, "': ", display(type)))
          .at({file.path()})
          .hint(did_you_mean(name, file.names()));
    Feed feed{name, tensor->dtype, tensor->shape, tensor->data};
    if (tensor->shape.size() == type.shape.size() + 1) {
      const int64_t steps = tensor->shape[0];
      Error error(concat("the tensor '", name, "' is ", described(*tensor), ", the input ", display(type)));
      error.at({file.path()});
      if (!index)
        throw error.hint(
            concat("its first axis seems to count steps: choose one with --index 0 to ", steps - 1));
      if (*index < 0 || *index >= steps)
        throw error.expected(concat("--index from 0 to ", steps - 1, ", not ", *index));
      feed.shape.erase(feed.shape.begin());
      feed.data = tensor->data + tensor->bytes / static_cast<size_t>(steps) * static_cast<size_t>(*index);
      index_used = true;
    } else if (tensor->shape.size() != type.shape.size()) {
      throw Error(concat("the tensor '", name, "' is ", described(*tensor)))
          .at({file.path()})
          .expected(concat(display(type), ", as the input, or with an axis of steps in front"));
    }
    feeds.push_back(std::move(feed));
  }
  if (index && !index_used)
    throw Error(concat("--index ", *index, ": no tensor has an axis of steps")).at({file.path()});
  return feeds;
}

std::map<std::string, int64_t> sizes_from_feeds(const Graph& graph, const std::vector<Feed>& feeds,
                                                const std::map<std::string, int64_t>& given) {
  std::map<std::string, Binding> bindings;
  for (const auto& [name, number] : given) bindings[name] = {number, concat("--size ", name, "=", number)};
  const std::vector<NodeId> inputs = graph.inputs();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Shape& shape = graph.type(graph.nodes[inputs[i]].results[0]).shape;
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      const auto solved = solve(shape[axis], feeds[i].shape[axis]);
      if (!solved) continue;
      const auto& [name, number] = *solved;
      const std::string by = concat("the tensor '", feeds[i].name, "' ", to_string(feeds[i].shape));
      auto [found, is_new] = bindings.emplace(name, Binding{number, by});
      if (!is_new && found->second.number != number)
        throw Error(concat("the size '", name, "' is ", found->second.number, " by ", found->second.by,
                           ", but ", number, " by ", by));
    }
  }
  std::map<std::string, int64_t> sizes;
  for (const auto& [name, binding] : bindings) sizes[name] = binding.number;
  return sizes;
}

void check_feeds(const Graph& graph, const std::vector<Feed>& feeds) {
  const std::vector<NodeId> inputs = graph.inputs();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Type& type = graph.type(graph.nodes[inputs[i]].results[0]);
    const Feed& feed = feeds.at(i);
    if (feed.dtype == type.dtype && feed.shape == numbers(type.shape)) continue;
    Error error(concat("the input '", feed.name, "' is fed ", to_string(feed.dtype), to_string(feed.shape)));
    error.expected(display(type));
    if (feed.dtype == type.dtype) error.hint("a dump after infer has fixed sizes: see kumi dump --size");
    throw error;
  }
}

}  // namespace kumi
