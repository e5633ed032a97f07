#include "tests/ops/device_run.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "graph/error.h"

namespace kumi::testing {
namespace {

template <typename T>
void put(std::byte* to, double value) {
  T typed = static_cast<T>(value);
  std::memcpy(to, &typed, sizeof typed);
}

template <typename T>
double get(const std::byte* from) {
  T typed;
  std::memcpy(&typed, from, sizeof typed);
  return static_cast<double>(typed);
}

// The nearest number with so many bits of significand; ties to even.
double rounded(double x, int bits) {
  if (x == 0 || !std::isfinite(x)) return x;
  double unit = std::ldexp(1.0, std::ilogb(x) - bits + 1);
  return std::nearbyint(x / unit) * unit;
}

void put_element(DType dtype, std::byte* to, double x) {
  switch (dtype) {
    case DType::F32:
      return put<float>(to, x);
    case DType::F64:
      return put<double>(to, x);
    case DType::BF16:
      return put<uint16_t>(to, std::bit_cast<uint32_t>(static_cast<float>(rounded(x, 8))) >> 16);
    case DType::F16:
      return put<_Float16>(to, x);
    case DType::I32:
      return put<int32_t>(to, x);
    case DType::I64:
      return put<int64_t>(to, x);
    case DType::U8:
      return put<uint8_t>(to, x);
    case DType::BOOL:
      return put<bool>(to, x);
  }
}

double get_element(DType dtype, const std::byte* from) {
  switch (dtype) {
    case DType::F32:
      return get<float>(from);
    case DType::F64:
      return get<double>(from);
    case DType::BF16:
      return std::bit_cast<float>(static_cast<uint32_t>(get<uint16_t>(from)) << 16);
    case DType::F16:
      return get<_Float16>(from);
    case DType::I32:
      return get<int32_t>(from);
    case DType::I64:
      return get<int64_t>(from);
    case DType::U8:
    case DType::BOOL:
      return get<uint8_t>(from);
  }
  return 0;
}

}  // namespace

std::vector<std::byte> to_bytes(const ReferenceTensor& tensor) {
  size_t size = static_cast<size_t>(size_of(tensor.dtype));
  std::vector<std::byte> bytes(tensor.data.size() * size);
  for (size_t i = 0; i < tensor.data.size(); ++i)
    put_element(tensor.dtype, bytes.data() + i * size, tensor.data[i]);
  return bytes;
}

ReferenceTensor from_bytes(DType dtype, std::vector<int64_t> shape, const std::vector<std::byte>& bytes) {
  size_t size = static_cast<size_t>(size_of(dtype));
  ReferenceTensor tensor{dtype, std::move(shape), {}};
  for (size_t at = 0; at < bytes.size(); at += size)
    tensor.data.push_back(get_element(dtype, bytes.data() + at));
  return tensor;
}

void round_elements(ReferenceTensor* tensor) {
  *tensor = from_bytes(tensor->dtype, tensor->shape, to_bytes(*tensor));
}

Device& shared_device(const std::string& name) {
  static std::map<std::string, std::unique_ptr<Device>> devices;
  std::unique_ptr<Device>& device = devices[name];
  if (device == nullptr) device = open_device(name);
  return *device;
}

DeviceRun::DeviceRun(Module module, const PlanOptions& options, Device& device)
    : executor_(std::make_unique<Executor>(
          make_plan(run_pipeline(std::move(module), options), dialect_of(device.name())), device)) {}

Tensors DeviceRun::run(const std::string& graph, const Tensors& feeds) {
  std::map<std::string, std::vector<std::byte>> bytes;
  std::vector<Feed> fed;
  for (const auto& [name, tensor] : feeds) {
    bytes[name] = to_bytes(tensor);
    fed.push_back({name, tensor.dtype, tensor.shape, bytes[name].data()});
  }
  executor_->run(graph, fed);
  Tensors outputs;
  for (const PlanPort& port : executor_->graph(graph).outputs) {
    HostTensor tensor = executor_->output(port.name);
    outputs[port.name] = from_bytes(tensor.dtype, tensor.shape, tensor.data);
  }
  return outputs;
}

void DeviceRun::write_state(const std::string& name, const ReferenceTensor& value) {
  executor_->write_state(name, to_bytes(value).data());
}

ReferenceTensor DeviceRun::read_state(const std::string& name) const {
  const Type& type = executor_->state(name).type;
  std::vector<std::byte> bytes(static_cast<size_t>(byte_count(type)));
  executor_->read_state(name, bytes.data());
  return from_bytes(type.dtype, numbers(type.shape), bytes);
}

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return std::ldexp(1.0, -24);
    case DType::F64:
      return std::ldexp(1.0, -53);
    case DType::BF16:
      return std::ldexp(1.0, -8);
    case DType::F16:
      return std::ldexp(1.0, -11);
    default:
      return 0;
  }
}

double Tolerance::of(DType result, double wanted) const {
  if (!is_floating(result)) return 0;
  constexpr double kOperations = 16;  // of a chain of operations and the functions in it, in roundings
  constexpr double kOfSum = 4;        // standard deviations of a sum's error, roughly
  return 1.01 * unit_roundoff(result) * std::abs(wanted) +
         unit_roundoff(computed_in) * (kOperations + kOfSum * std::sqrt(terms)) * scale +
         (terms_in ? unit_roundoff(*terms_in) * kOfSum * scale : 0);
}

std::string difference(const ReferenceTensor& found, const ReferenceTensor& wanted,
                       const Tolerance& tolerance) {
  if (found.dtype != wanted.dtype || found.shape != wanted.shape)
    return concat("found ", to_string(found.dtype), to_string(found.shape), " where ",
                  to_string(wanted.dtype), to_string(wanted.shape), " was wanted");
  for (size_t i = 0; i < wanted.data.size(); ++i) {
    double x = found.data[i], y = wanted.data[i], allowed = tolerance.of(wanted.dtype, y);
    if (x == y || std::abs(x - y) <= allowed || (std::isnan(x) && std::isnan(y))) continue;
    return concat("element ", i, " of ", wanted.data.size(), ": found ", x, ", wanted ", y, ", apart by ",
                  std::abs(x - y), ", allowed ", allowed);
  }
  return "";
}

}  // namespace kumi::testing
