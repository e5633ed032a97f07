// Tensors of tests: read from safetensors files, compared by norm.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace kumi::testing {

struct NamedTensor {
  std::vector<int64_t> shape;
  std::vector<double> data;
};

using NamedTensors = std::map<std::string, NamedTensor>;

// All tensors of a file, in double precision.
NamedTensors read_tensors(const std::filesystem::path& path);

// |a - b| / |b| in the Euclidean norm: the distance for a weight or a gradient as a whole. Where b
// is zero, |a|. Infinite if the shapes differ or a value is not finite.
double relative_distance(const NamedTensor& a, const NamedTensor& b);

// max |a - b| / max |b|: the largest error of an element, relative to the tensor's largest element.
double largest_difference(const NamedTensor& a, const NamedTensor& b);

// |a - b| / |b| of two numbers; infinite unless both are finite.
double relative_difference(double a, double b);

}  // namespace kumi::testing
