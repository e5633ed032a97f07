// The inputs of a graph from a safetensors file: which tensors, which step of them, which free sizes.
//
// An input takes the tensor of its name. The tensor may have one axis more in front, of steps, of
// which an index picks one. Free sizes (batch, seq) follow from the tensors' shapes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "runtime/host_tensor.h"
#include "runtime/safetensors.h"

namespace kumi {

// One feed for each input of the graph, in its order; their data is the file's. Throws Error for an
// input without tensor ("did you mean"), a tensor with the wrong number of axes, an axis of steps without
// index, an index beyond it, and an index where no tensor has such an axis.
std::vector<Feed> feeds_from_file(const Graph& graph, const SafetensorsFile& file,
                                  std::optional<int64_t> index);

// Matches the feeds' shapes with the inputs' symbolic ones: where an input has `batch` or `2*batch + 1`
// and the tensor has 9, batch is 4. `given` are sizes known before. Sizes that no input has alone on an axis
// are left out. Throws Error if two tensors, or a tensor and a given size, disagree, naming both.
std::map<std::string, int64_t> sizes_from_feeds(const Graph& graph, const std::vector<Feed>& feeds,
                                                const std::map<std::string, int64_t>& given);

// That the feeds have the types of the graph's inputs, whose sizes are numbers by now: before kernels are
// compiled for nothing. Throws Error with both types.
void check_feeds(const Graph& graph, const std::vector<Feed>& feeds);

}  // namespace kumi
