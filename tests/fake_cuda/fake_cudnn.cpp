// cuDNN without a GPU, for tests: its graph API. Descriptors hold what is set and are as strict as the
// documentation says: known attributes of the right type and number, all that are required, finalized before
// others refer to them, shapes that fit. A plan is made of any graph of the operations below, and run by
// evaluating it in double precision when the stream comes to it.
//
// Its heuristic proposes two engines, of which the first can make no plan. Heads of more than 128 it has none
// for. Environment: FAKE_CUDNN_VERSION (91900), FAKE_CUDNN_CUDA (13000), FAKE_CUDNN_FAIL, a function that
// fails.
#include <cudnn_graph.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tests/fake_cuda/fake_stream.h"

#define FAKE extern "C" [[gnu::visibility("default")]]

namespace {

using Sizes = std::array<int64_t, 4>;

constexpr int64_t kLargestHead = 128;
int live_descriptors = 0;
std::string last_error;

size_t number(const char* variable, size_t otherwise) {
  const char* value = getenv(variable);
  return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

cudnnStatus_t fail(cudnnStatus_t status, const std::string& why) {
  last_error = why;
  return status;
}

bool is_failing(const char* function) {
  const char* failing = getenv("FAKE_CUDNN_FAIL");
  return failing != nullptr && std::string_view(failing) == function;
}

// ---- What may be set.

struct AttributeRule {
  cudnnBackendDescriptorType_t of;
  int name;
  cudnnBackendAttributeType_t type;
  int64_t least, most;  // elements
  bool required;
  int refers_to = -1;  // the kind of descriptor
};

constexpr int64_t kMany = 1000;
constexpr AttributeRule kRules[] = {
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, 4, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, 4, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, 1, false},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, 1, false},
    {CUDNN_BACKEND_MATMUL_DESCRIPTOR, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, 1, true},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_DESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_MATMUL_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_ADESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_BDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_CDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, 1, true},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, 1, true},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, 1, false},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_POINTWISE_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, false, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_TDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, false, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_YDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_REDUCTION_DESCRIPTOR, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1,
     1, true},
    {CUDNN_BACKEND_REDUCTION_DESCRIPTOR, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, 1, true},
    {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, CUDNN_ATTR_OPERATION_REDUCTION_DESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_REDUCTION_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, CUDNN_ATTR_OPERATION_REDUCTION_XDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, CUDNN_ATTR_OPERATION_REDUCTION_YDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, CUDNN_ATTR_OPERATION_RESHAPE_XDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, CUDNN_ATTR_OPERATION_RESHAPE_YDESC,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     kMany, true},
    {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, 1,
     true},
    {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR},
    {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, 1, true},
    {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, 1,
     true},
    {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, true, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 1, kMany,
     true},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 1,
     kMany, true},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, 1,
     true},
};

int64_t bytes_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
      return 1;
    default:
      return 4;
  }
}

// ---- Descriptors. What refers to a descriptor shares what that has said, so that it may be destroyed first.

struct Content {
  cudnnBackendDescriptorType_t kind;
  bool is_final = false;
  std::map<int, std::string> attributes;  // by name, as bytes
  std::map<int, std::vector<std::shared_ptr<const Content>>> references;

  bool has(int name) const { return attributes.count(name) != 0 || references.count(name) != 0; }
  template <typename Value>
  Value get(int name, Value otherwise = {}) const {
    auto found = attributes.find(name);
    if (found != attributes.end()) memcpy(&otherwise, found->second.data(), sizeof otherwise);
    return otherwise;
  }
  template <typename Value>
  std::vector<Value> list(int name) const {
    const std::string& bytes = attributes.at(name);
    std::vector<Value> values(bytes.size() / sizeof(Value));
    memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  const Content& at(int name) const { return *references.at(name).front(); }
};

struct Descriptor {
  std::shared_ptr<Content> content;
};

Descriptor& of(cudnnBackendDescriptor_t descriptor) {
  return *static_cast<Descriptor*>(descriptor);
}

// ---- Tensors and operations.

struct Tensor {
  int64_t id = 0, alignment = 0;
  cudnnDataType_t dtype = CUDNN_DATA_FLOAT;
  Sizes sizes{}, strides{};
  bool is_virtual = false, is_by_value = false;

  explicit Tensor(const Content& content)
      : id(content.get<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID)),
        alignment(content.get<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT)),
        dtype(content.get<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE)),
        sizes(content.get<Sizes>(CUDNN_ATTR_TENSOR_DIMENSIONS)),
        strides(content.get<Sizes>(CUDNN_ATTR_TENSOR_STRIDES)),
        is_virtual(content.get<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL)),
        is_by_value(content.get<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE)) {}

  bool operator==(const Tensor&) const = default;
  int64_t count() const { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }
  int64_t offset(const Sizes& index) const {
    int64_t sum = 0;
    for (size_t i = 0; i < 4; ++i) sum += index[i] * strides[i];
    return sum;
  }
  bool is_packed() const {
    int64_t stride = 1;
    for (size_t i = 4; i-- > 0; stride *= sizes[i])
      if (strides[i] != stride) return false;
    return true;
  }
};

Sizes index_of(const Sizes& sizes, int64_t element) {
  Sizes index{};
  for (size_t i = 4; i-- > 0; element /= sizes[i]) index[i] = element % sizes[i];
  return index;
}
int64_t element_of(const Sizes& sizes, const Sizes& index) {
  int64_t element = 0;
  for (size_t i = 0; i < 4; ++i) element = element * sizes[i] + index[i];
  return element;
}
// The place in a smaller tensor that an index of a larger one belongs to: its only one, or one for several
// heads.
Sizes shrunk(Sizes index, const Sizes& from, const Sizes& to) {
  for (size_t i = 0; i < 4; ++i) index[i] = index[i] / (from[i] / to[i]);
  return index;
}
bool divides(const Sizes& smaller, const Sizes& larger) {
  for (size_t i = 0; i < 4; ++i)
    if (larger[i] % smaller[i] != 0) return false;
  return true;
}

// How many operands a mode takes; 0: unknown here.
size_t operands_of(cudnnPointwiseMode_t mode) {
  switch (mode) {
    case CUDNN_POINTWISE_EXP:
    case CUDNN_POINTWISE_LOG:
    case CUDNN_POINTWISE_IDENTITY:
    case CUDNN_POINTWISE_GEN_INDEX:
      return 1;
    case CUDNN_POINTWISE_ADD:
    case CUDNN_POINTWISE_SUB:
    case CUDNN_POINTWISE_MUL:
    case CUDNN_POINTWISE_DIV:
    case CUDNN_POINTWISE_CMP_GE:
      return 2;
    case CUDNN_POINTWISE_BINARY_SELECT:
      return 3;
    default:
      return 0;
  }
}

double pointwise(cudnnPointwiseMode_t mode, const double* x) {
  switch (mode) {
    case CUDNN_POINTWISE_EXP:
      return std::exp(x[0]);
    case CUDNN_POINTWISE_LOG:
      return std::log(x[0]);
    case CUDNN_POINTWISE_ADD:
      return x[0] + x[1];
    case CUDNN_POINTWISE_SUB:
      return x[0] - x[1];
    case CUDNN_POINTWISE_MUL:
      return x[0] * x[1];
    case CUDNN_POINTWISE_DIV:
      return x[0] / x[1];
    case CUDNN_POINTWISE_CMP_GE:
      return x[0] >= x[1];
    case CUDNN_POINTWISE_BINARY_SELECT:
      return x[2] != 0 ? x[0] : x[1];
    default:
      return x[0];
  }
}

struct Operation {
  cudnnBackendDescriptorType_t kind;
  std::vector<Tensor> operands;
  Tensor result;
  cudnnPointwiseMode_t mode = CUDNN_POINTWISE_IDENTITY;
  cudnnReduceTensorOp_t reduction = CUDNN_REDUCE_TENSOR_ADD;
  int64_t axis = -1;
};

Operation operation_of(const Content& content) {
  auto tensor = [&](int name) { return Tensor(content.at(name)); };
  switch (content.kind) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
      return {content.kind,
              {tensor(CUDNN_ATTR_OPERATION_MATMUL_ADESC), tensor(CUDNN_ATTR_OPERATION_MATMUL_BDESC)},
              tensor(CUDNN_ATTR_OPERATION_MATMUL_CDESC)};
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR: {
      Operation operation{content.kind,
                          {tensor(CUDNN_ATTR_OPERATION_REDUCTION_XDESC)},
                          tensor(CUDNN_ATTR_OPERATION_REDUCTION_YDESC)};
      operation.reduction = content.at(CUDNN_ATTR_OPERATION_REDUCTION_DESC)
                                .get<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR);
      return operation;
    }
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
      return {content.kind,
              {tensor(CUDNN_ATTR_OPERATION_RESHAPE_XDESC)},
              tensor(CUDNN_ATTR_OPERATION_RESHAPE_YDESC)};
    default: {
      Operation operation{content.kind, {}, tensor(CUDNN_ATTR_OPERATION_POINTWISE_YDESC)};
      for (int name : {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                       CUDNN_ATTR_OPERATION_POINTWISE_TDESC})
        if (content.has(name)) operation.operands.push_back(tensor(name));
      const Content& kind = content.at(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
      operation.mode = kind.get<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
      operation.axis = kind.get<int64_t>(CUDNN_ATTR_POINTWISE_AXIS, -1);
      return operation;
    }
  }
}

// What is wrong with an operation; empty if nothing is.
std::string complaint(const Operation& operation) {
  const Sizes& result = operation.result.sizes;
  switch (operation.kind) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR: {
      const Sizes &a = operation.operands[0].sizes, &b = operation.operands[1].sizes;
      const bool fits = a[0] == b[0] && a[1] % b[1] == 0 && result[0] == a[0] && result[1] == a[1] &&
                        a[3] == b[2] && result[2] == a[2] && result[3] == b[3];
      return fits ? "" : "the matrices of a product do not fit";
    }
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
      return divides(result, operation.operands[0].sizes) ? "" : "the result of a reduction does not fit";
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
      return operation.operands[0].count() == operation.result.count() ? "" : "a reshape loses elements";
    default:
      if (operation.operands.size() != operands_of(operation.mode)) return "a wrong number of operands";
      if (operation.mode == CUDNN_POINTWISE_GEN_INDEX && (operation.axis < 0 || operation.axis > 3))
        return "an index needs an axis";
      for (const Tensor& operand : operation.operands)
        if (!divides(operand.sizes, result)) return "an operand does not fit";
      return "";
  }
}

double read(const void* memory, cudnnDataType_t type, int64_t at) {
  if (type == CUDNN_DATA_FLOAT) return static_cast<const float*>(memory)[at];
  const uint16_t bits = static_cast<const uint16_t*>(memory)[at];
  if (type == CUDNN_DATA_BFLOAT16) return std::bit_cast<float>(uint32_t{bits} << 16);
  return static_cast<double>(std::bit_cast<_Float16>(bits));
}

void write(void* memory, cudnnDataType_t type, int64_t at, double value) {
  const float narrow = static_cast<float>(value);
  if (type == CUDNN_DATA_FLOAT) {
    static_cast<float*>(memory)[at] = narrow;
  } else if (type == CUDNN_DATA_BFLOAT16) {
    const uint32_t bits = std::bit_cast<uint32_t>(narrow);
    static_cast<uint16_t*>(memory)[at] = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  } else {
    static_cast<uint16_t*>(memory)[at] = std::bit_cast<uint16_t>(static_cast<_Float16>(narrow));
  }
}

// ---- Running.

using Values = std::vector<double>;  // in the order of the sizes

class Run {
 public:
  Run(const std::vector<Operation>& operations, std::map<int64_t, void*> addresses)
      : operations_(operations), addresses_(std::move(addresses)) {}

  void run() {
    for (const Operation& operation : operations_) {
      Values result(static_cast<size_t>(operation.result.count()));
      compute(operation, &result);
      values_[operation.result.id] = result;
      if (operation.result.is_virtual) continue;
      void* const memory = addresses_.at(operation.result.id);
      for (size_t i = 0; i < result.size(); ++i)
        write(memory, operation.result.dtype, place(operation.result, i), result[i]);
    }
  }

 private:
  static int64_t place(const Tensor& tensor, size_t element) {
    return tensor.offset(index_of(tensor.sizes, static_cast<int64_t>(element)));
  }

  const Values& of(const Tensor& tensor) {
    auto found = values_.find(tensor.id);
    if (found != values_.end()) return found->second;
    const void* const memory = addresses_.at(tensor.id);
    Values& values = values_[tensor.id];
    values.resize(static_cast<size_t>(tensor.count()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = read(memory, tensor.dtype, place(tensor, i));
    return values;
  }

  void compute(const Operation& operation, Values* result) {
    const Tensor& y = operation.result;
    const Tensor& x = operation.operands[0];
    const Values& values = of(x);
    if (operation.kind == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR) {
      // The same places in memory, if both had some.
      std::map<int64_t, double> by_place;
      for (size_t i = 0; i < values.size(); ++i) by_place[place(x, i)] = values[i];
      for (size_t i = 0; i < result->size(); ++i) (*result)[i] = by_place.at(place(y, i));
      return;
    }
    if (operation.kind == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR) {
      const bool is_max = operation.reduction == CUDNN_REDUCE_TENSOR_MAX;
      if (is_max) result->assign(result->size(), -std::numeric_limits<double>::infinity());
      for (size_t i = 0; i < values.size(); ++i) {
        const Sizes to = shrunk(index_of(x.sizes, static_cast<int64_t>(i)), x.sizes, y.sizes);
        double& sum = (*result)[static_cast<size_t>(element_of(y.sizes, to))];
        sum = is_max ? std::max(sum, values[i]) : sum + values[i];
      }
      return;
    }
    if (operation.kind == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
      const Tensor& b = operation.operands[1];
      const Values& right = of(b);
      const int64_t group = x.sizes[1] / b.sizes[1];
      for (size_t i = 0; i < result->size(); ++i) {
        const Sizes at = index_of(y.sizes, static_cast<int64_t>(i));
        for (int64_t k = 0; k < x.sizes[3]; ++k)
          (*result)[i] += values[static_cast<size_t>(element_of(x.sizes, {at[0], at[1], at[2], k}))] *
                          right[static_cast<size_t>(element_of(b.sizes, {at[0], at[1] / group, k, at[3]}))];
      }
      return;
    }
    for (size_t i = 0; i < result->size(); ++i) {
      const Sizes at = index_of(y.sizes, static_cast<int64_t>(i));
      if (operation.mode == CUDNN_POINTWISE_GEN_INDEX) {
        (*result)[i] = static_cast<double>(at[static_cast<size_t>(operation.axis)]);
        continue;
      }
      double operands[3] = {};
      for (size_t o = 0; o < operation.operands.size(); ++o) {
        const Tensor& operand = operation.operands[o];
        operands[o] =
            of(operand)[static_cast<size_t>(element_of(operand.sizes, shrunk(at, y.sizes, operand.sizes)))];
      }
      (*result)[i] = pointwise(operation.mode, operands);
    }
  }

  const std::vector<Operation>& operations_;
  std::map<int64_t, void*> addresses_;
  std::map<int64_t, Values> values_;
};

std::vector<Operation> operations_of(const Content& graph) {
  std::vector<Operation> operations;
  for (const auto& one : graph.references.at(CUDNN_ATTR_OPERATIONGRAPH_OPS))
    operations.push_back(operation_of(*one));
  return operations;
}

// Every tensor by its id. Complains where one has two descriptions, or is used before it is there.
std::string tensors_of(const std::vector<Operation>& operations, std::map<int64_t, Tensor>* tensors) {
  std::set<int64_t> computed;
  for (const Operation& operation : operations) {
    for (const Tensor& operand : operation.operands) {
      if (!tensors->emplace(operand.id, operand).second && tensors->at(operand.id) != operand)
        return "a tensor has two descriptions";
      if (operand.is_virtual && computed.count(operand.id) == 0) return "nothing computes an operand";
    }
    const Tensor& result = operation.result;
    if (!computed.insert(result.id).second || result.is_by_value) return "a result cannot be written";
    if (!tensors->emplace(result.id, result).second) return "a result was used before it was computed";
  }
  return "";
}

cudnnStatus_t check_final(const Content& content) {
  if (content.kind == CUDNN_BACKEND_TENSOR_DESCRIPTOR) {
    const Tensor tensor(content);
    if (*std::min_element(tensor.sizes.begin(), tensor.sizes.end()) < 1)
      return fail(CUDNN_STATUS_BAD_PARAM, "a tensor without elements");
    if (tensor.is_virtual && tensor.is_by_value) return fail(CUDNN_STATUS_BAD_PARAM, "virtual and by value");
    if (tensor.is_by_value && tensor.count() != 1) return fail(CUDNN_STATUS_BAD_PARAM, "more than a value");
    // Documented of the sums that attention leaves for its gradient.
    if (!tensor.is_virtual && tensor.dtype == CUDNN_DATA_FLOAT && !tensor.is_packed())
      return fail(CUDNN_STATUS_NOT_SUPPORTED, "sums with gaps");
    return CUDNN_STATUS_SUCCESS;
  }
  if (content.kind == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
    std::map<int64_t, Tensor> tensors;
    const std::string wrong = tensors_of(operations_of(content), &tensors);
    return wrong.empty() ? CUDNN_STATUS_SUCCESS : fail(CUDNN_STATUS_BAD_PARAM, wrong);
  }
  if (content.kind == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR) {
    const std::vector<int64_t> ids = content.list<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    if (ids.size() != content.list<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS).size())
      return fail(CUDNN_STATUS_BAD_PARAM, "not an address for each id");
    if (std::set<int64_t>(ids.begin(), ids.end()).size() != ids.size())
      return fail(CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES, "an id twice");
    return CUDNN_STATUS_SUCCESS;
  }
  if (content.kind == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
    return content.at(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).get<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX) ==
                   0
               ? fail(CUDNN_STATUS_NOT_SUPPORTED, "the first engine makes no plans")
               : CUDNN_STATUS_SUCCESS;
  const bool is_operation = content.kind == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR ||
                            content.kind == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR ||
                            content.kind == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR ||
                            content.kind == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR;
  if (is_operation)
    if (const std::string wrong = complaint(operation_of(content)); !wrong.empty())
      return fail(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, wrong);
  return CUDNN_STATUS_SUCCESS;
}

struct Handle {
  FakeStream* stream = nullptr;
};

constexpr int64_t kWorkspaceBytes = 1000;

}  // namespace

// Of descriptors that have not been destroyed.
FAKE int fake_cudnn_descriptors() {
  return live_descriptors;
}

FAKE size_t cudnnGetVersion() {
  return number("FAKE_CUDNN_VERSION", 91900);
}
FAKE size_t cudnnGetCudartVersion() {
  return number("FAKE_CUDNN_CUDA", 13000);
}
FAKE const char* cudnnGetErrorString(cudnnStatus_t status) {
  return status == CUDNN_STATUS_BAD_PARAM ? "CUDNN_STATUS_BAD_PARAM" : "CUDNN_STATUS_OTHER";
}
FAKE void cudnnGetLastErrorString(char* message, size_t most) {
  snprintf(message, most, "%s", last_error.c_str());
}
FAKE cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  if (is_failing(__func__)) return fail(CUDNN_STATUS_NOT_INITIALIZED, "it does not start");
  *handle = reinterpret_cast<cudnnHandle_t>(new Handle);
  return CUDNN_STATUS_SUCCESS;
}
FAKE cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete reinterpret_cast<Handle*>(handle);
  return CUDNN_STATUS_SUCCESS;
}
FAKE cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  reinterpret_cast<Handle*>(handle)->stream = reinterpret_cast<FakeStream*>(stream);
  return CUDNN_STATUS_SUCCESS;
}

FAKE cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t kind,
                                                cudnnBackendDescriptor_t* descriptor) {
  auto content = std::make_shared<Content>();
  content->kind = kind;
  *descriptor = new Descriptor{content};
  ++live_descriptors;
  return CUDNN_STATUS_SUCCESS;
}
FAKE cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete &of(descriptor);
  --live_descriptors;
  return CUDNN_STATUS_SUCCESS;
}

FAKE cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                            cudnnBackendAttributeName_t name,
                                            cudnnBackendAttributeType_t type, int64_t count,
                                            const void* elements) {
  Content& content = *of(descriptor).content;
  if (content.is_final) return fail(CUDNN_STATUS_BAD_PARAM, "set after it was finalized");
  const auto* const rule = std::find_if(std::begin(kRules), std::end(kRules), [&](const AttributeRule& one) {
    return one.of == content.kind && one.name == name;
  });
  if (rule == std::end(kRules)) return fail(CUDNN_STATUS_BAD_PARAM, "an unknown attribute");
  if (rule->type != type) return fail(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "an attribute's type");
  if (count < rule->least || count > rule->most || elements == nullptr)
    return fail(CUDNN_STATUS_BAD_PARAM, "an attribute's number of elements");
  if (type != CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    content.attributes[name].assign(static_cast<const char*>(elements),
                                    static_cast<size_t>(count * bytes_of(type)));
    return CUDNN_STATUS_SUCCESS;
  }
  for (int64_t i = 0; i < count; ++i) {
    const Descriptor& other = of(static_cast<const cudnnBackendDescriptor_t*>(elements)[i]);
    if (!other.content->is_final) return fail(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "not finalized");
    if (rule->refers_to >= 0 && other.content->kind != rule->refers_to)
      return fail(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "a descriptor of another kind");
    content.references[name].push_back(other.content);
  }
  return CUDNN_STATUS_SUCCESS;
}

FAKE cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  Content& content = *of(descriptor).content;
  if (content.is_final) return fail(CUDNN_STATUS_BAD_PARAM, "finalized twice");
  for (const AttributeRule& rule : kRules)
    if (rule.of == content.kind && rule.required && !content.has(rule.name))
      return fail(CUDNN_STATUS_BAD_PARAM, "the attribute " + std::to_string(rule.name) + " is missing");
  const cudnnStatus_t status = check_final(content);
  content.is_final = status == CUDNN_STATUS_SUCCESS;
  return status;
}

FAKE cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor,
                                            cudnnBackendAttributeName_t name,
                                            cudnnBackendAttributeType_t type, int64_t most, int64_t* count,
                                            void* elements) {
  const Content& content = *of(descriptor).content;
  if (!content.is_final) return fail(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "not finalized");
  if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && type == CUDNN_TYPE_INT64 && most == 1) {
    *static_cast<int64_t*>(elements) = kWorkspaceBytes;
    *count = 1;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name != CUDNN_ATTR_ENGINEHEUR_RESULTS || type != CUDNN_TYPE_BACKEND_DESCRIPTOR)
    return fail(CUDNN_STATUS_BAD_PARAM, "an attribute that it does not tell");
  const auto& graph = content.references.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH).front();
  *count = 0;
  for (const Operation& operation : operations_of(*graph))
    if (operation.kind == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR && !operation.result.is_virtual &&
        operation.result.sizes[3] > kLargestHead)
      return CUDNN_STATUS_SUCCESS;
  for (int64_t engine = 0; engine < std::min<int64_t>(most, 2); ++engine) {
    Content& config = *of(static_cast<cudnnBackendDescriptor_t*>(elements)[engine]).content;
    if (config.kind != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR || config.is_final)
      return fail(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "no place for an engine");
    config.is_final = true;
    config.attributes[CUDNN_ATTR_ENGINE_GLOBAL_INDEX].assign(reinterpret_cast<const char*>(&engine),
                                                             sizeof engine);
    config.references[CUDNN_ATTR_ENGINE_OPERATION_GRAPH] = {graph};
    ++*count;
  }
  return CUDNN_STATUS_SUCCESS;
}

FAKE cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan_descriptor,
                                       cudnnBackendDescriptor_t pack_descriptor) {
  const Content &plan = *of(plan_descriptor).content, &pack = *of(pack_descriptor).content;
  if (!plan.is_final || !pack.is_final) return fail(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "not finalized");
  if (plan.get<cudnnHandle_t>(CUDNN_ATTR_EXECUTION_PLAN_HANDLE) != handle)
    return fail(CUDNN_STATUS_BAD_PARAM, "a plan of another handle");
  if (pack.get<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE) == nullptr)
    return fail(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no workspace");
  const auto operations = std::make_shared<std::vector<Operation>>(
      operations_of(plan.at(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).at(CUDNN_ATTR_ENGINE_OPERATION_GRAPH)));
  std::map<int64_t, Tensor> tensors;
  tensors_of(*operations, &tensors);

  const std::vector<int64_t> ids = pack.list<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const std::vector<void*> given = pack.list<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  std::map<int64_t, void*> addresses;
  // Values of the host are copied now, as by the real one.
  const auto scalars = std::make_shared<std::map<int64_t, float>>();
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto found = tensors.find(ids[i]);
    if (found == tensors.end() || found->second.is_virtual || given[i] == nullptr)
      return fail(CUDNN_STATUS_BAD_PARAM, "an address that is no tensor's, or none");
    if (found->second.is_by_value) {
      float& copy = (*scalars)[ids[i]];
      copy = *static_cast<const float*>(given[i]);
      addresses[ids[i]] = &copy;
      continue;
    }
    if (reinterpret_cast<uintptr_t>(given[i]) % static_cast<uintptr_t>(found->second.alignment) != 0)
      return fail(CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "an address is not aligned");
    addresses[ids[i]] = given[i];
  }
  for (const auto& [id, tensor] : tensors)
    if (!tensor.is_virtual && addresses.count(id) == 0)
      return fail(CUDNN_STATUS_BAD_PARAM, "the address of " + std::to_string(id) + " is missing");
  fake_log("cudnn " + std::to_string(operations->size()) + " operations");
  const std::lock_guard lock(fake_mutex());
  fake_queue(reinterpret_cast<Handle*>(handle)->stream,
             {[operations, addresses, scalars] { Run(*operations, addresses).run(); }});
  return CUDNN_STATUS_SUCCESS;
}
