#include "tests/support/tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "graph/error.h"
#include "runtime/host_tensor.h"
#include "runtime/safetensors.h"

namespace kumi::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
std::vector<double> widened(const TensorView& tensor) {
  std::vector<double> values(static_cast<size_t>(tensor.element_count()));
  for (size_t i = 0; i < values.size(); ++i) {
    T value;
    std::memcpy(&value, tensor.data + i * sizeof value, sizeof value);
    values[i] = static_cast<double>(value);
  }
  return values;
}

std::vector<double> values_of(const TensorView& tensor) {
  switch (tensor.dtype) {
    case DType::F64:
      return widened<double>(tensor);
    case DType::I32:
      return widened<int32_t>(tensor);
    case DType::I64:
      return widened<int64_t>(tensor);
    case DType::U8:
    case DType::BOOL:
      return widened<uint8_t>(tensor);
    default: {
      const std::vector<float> values = as_f32(tensor.dtype, tensor.data, tensor.element_count());
      return {values.begin(), values.end()};
    }
  }
}

bool are_comparable(const NamedTensor& a, const NamedTensor& b) {
  const auto is_finite = [](double x) { return std::isfinite(x); };
  return a.shape == b.shape && a.data.size() == b.data.size() &&
         std::all_of(a.data.begin(), a.data.end(), is_finite) &&
         std::all_of(b.data.begin(), b.data.end(), is_finite);
}

}  // namespace

NamedTensors read_tensors(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  NamedTensors tensors;
  for (const std::string& name : file.names()) {
    const TensorView& tensor = file.tensor(name);
    tensors[name] = {tensor.shape, values_of(tensor)};
  }
  return tensors;
}

double relative_distance(const NamedTensor& a, const NamedTensor& b) {
  if (!are_comparable(a, b)) return kInfinity;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.data.size(); ++i) {
    difference += (a.data[i] - b.data[i]) * (a.data[i] - b.data[i]);
    norm += b.data[i] * b.data[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

double largest_difference(const NamedTensor& a, const NamedTensor& b) {
  if (!are_comparable(a, b)) return kInfinity;
  double difference = 0, largest = 0;
  for (size_t i = 0; i < b.data.size(); ++i) {
    difference = std::max(difference, std::abs(a.data[i] - b.data[i]));
    largest = std::max(largest, std::abs(b.data[i]));
  }
  return largest == 0 ? difference : difference / largest;
}

double relative_difference(double a, double b) {
  if (!std::isfinite(a) || !std::isfinite(b)) return kInfinity;
  return a == b ? 0 : std::abs(a - b) / std::abs(b);
}

}  // namespace kumi::testing
