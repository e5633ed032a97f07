// A tensor in host memory, row-major: what goes into a graph, and what comes out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "graph/dtype.h"

namespace kumi {

// Owns its data.
struct HostTensor {
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
};

// An input by name; `data` points at the product of `shape` elements and is read during the call.
struct Feed {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

// The elements as f32, from any floating type. Throws Error for a type that is not floating.
std::vector<float> as_f32(DType dtype, const void* data, int64_t count);

}  // namespace kumi
