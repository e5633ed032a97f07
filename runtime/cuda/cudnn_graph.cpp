#include "runtime/cuda/cudnn_graph.h"

#include <algorithm>
#include <utility>

namespace kumi {
namespace {

constexpr size_t kOldestVersion = 90600;  // older ones want sums in memory cleared, and have fewer shapes
constexpr int64_t kAlignment = 16;        // bytes, of all tensors
constexpr int64_t kMostProposals = 16;    // of one heuristic

// 9.10.0 and 9.10.1 compute some attention wrongly, says NVIDIA.
bool is_known_to_be_wrong(size_t version) {
  return version == 91000 || version == 91001;
}

}  // namespace

// ---- The library.

CudnnLibrary::CudnnLibrary(int newest_cuda)
    : library_({.subject = "fast attention",
                .library = "cuDNN",
                .sonames = {"libcudnn.so.9"},
                .companions = "",
                .hint = "install cuDNN 9 for CUDA " + std::to_string(newest_cuda) +
                        ", or have its directory in LD_LIBRARY_PATH"}),
      functions_(library_),
      version_(functions_.cudnnGetVersion()) {
  if (version_ < kOldestVersion || is_known_to_be_wrong(version_))
    throw Error(
        concat("cuDNN ", dotted_version(version_), " is ",
               version_ < kOldestVersion ? "too old for attention" : "known to compute attention wrongly"))
        .expected("9.6 or later, but for 9.10.0 and 9.10.1");
  const size_t cuda = functions_.cudnnGetCudartVersion() / 1000;
  if (cuda > static_cast<size_t>(newest_cuda))
    throw Error(concat(name(), " is made for CUDA ", cuda, ", the driver is of CUDA ", newest_cuda))
        .hint("install a newer driver, or cuDNN for an older CUDA");
}

std::string CudnnLibrary::name() const {
  return "cuDNN " + dotted_version(version_);
}

void CudnnLibrary::fail(cudnnStatus_t status, const std::string& what) const {
  const char* name = functions_.cudnnGetErrorString(status);
  char detail[512] = {};
  functions_.cudnnGetLastErrorString(detail, sizeof detail);
  throw Error(concat("cuDNN cannot ", what, ": ", name == nullptr ? "" : name, " (status ",
                     static_cast<int>(status), ")", detail[0] == '\0' ? "" : ": ", detail));
}

// ---- Descriptors.

CudnnDescriptor::CudnnDescriptor(const CudnnLibrary& library, cudnnBackendDescriptorType_t type)
    : library_(&library) {
  library.check(library.functions().cudnnBackendCreateDescriptor(type, &descriptor_),
                "make a descriptor of the kind ", static_cast<int>(type));
}

CudnnDescriptor::~CudnnDescriptor() {
  if (descriptor_ != nullptr) library_->functions().cudnnBackendDestroyDescriptor(descriptor_);
}

CudnnDescriptor::CudnnDescriptor(CudnnDescriptor&& other) noexcept
    : library_(other.library_), descriptor_(std::exchange(other.descriptor_, nullptr)) {}

CudnnDescriptor& CudnnDescriptor::operator=(CudnnDescriptor&& other) noexcept {
  std::swap(library_, other.library_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                          const void* elements) {
  library_->check(library_->functions().cudnnBackendSetAttribute(descriptor_, name, type, count, elements),
                  "take the attribute ", static_cast<int>(name));
}

void CudnnDescriptor::finalize() {
  library_->check(library_->functions().cudnnBackendFinalize(descriptor_), "do what has been described");
}

bool CudnnDescriptor::try_finalize() {
  return library_->functions().cudnnBackendFinalize(descriptor_) == CUDNN_STATUS_SUCCESS;
}

int64_t CudnnDescriptor::number(cudnnBackendAttributeName_t name) const {
  int64_t value = 0, count = 0;
  library_->check(
      library_->functions().cudnnBackendGetAttribute(descriptor_, name, CUDNN_TYPE_INT64, 1, &count, &value),
      "tell the attribute ", static_cast<int>(name));
  return value;
}

std::vector<CudnnDescriptor> CudnnDescriptor::descriptors(cudnnBackendAttributeName_t name,
                                                          cudnnBackendDescriptorType_t type) const {
  std::vector<CudnnDescriptor> found;
  std::vector<cudnnBackendDescriptor_t> places;
  for (int64_t i = 0; i < kMostProposals; ++i) places.push_back(found.emplace_back(*library_, type).get());
  int64_t count = 0;
  library_->check(
      library_->functions().cudnnBackendGetAttribute(descriptor_, name, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                                     kMostProposals, &count, places.data()),
      "tell the attribute ", static_cast<int>(name));
  while (static_cast<int64_t>(found.size()) > count) found.pop_back();
  return found;
}

// ---- Graphs.

CudnnSizes row_major(const CudnnSizes& sizes) {
  return {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1};
}

CudnnGraphBuilder::Tensor CudnnGraphBuilder::add(int64_t id, cudnnDataType_t dtype, const CudnnSizes& sizes,
                                                 const CudnnSizes& strides, bool is_virtual,
                                                 bool is_by_value) {
  CudnnDescriptor tensor(library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, dtype);
  tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::ssize(sizes), sizes.data());
  tensor.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, std::ssize(strides), strides.data());
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment);
  tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual);
  tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, is_by_value);
  tensor.finalize();
  tensors_.emplace_back(id, std::move(tensor));
  return {id, sizes, strides};
}

CudnnGraphBuilder::Tensor CudnnGraphBuilder::tensor(int64_t id, cudnnDataType_t dtype,
                                                    const CudnnSizes& sizes, const CudnnSizes& strides) {
  return add(id, dtype, sizes, strides, false, false);
}

CudnnGraphBuilder::Tensor CudnnGraphBuilder::scalar(int64_t id) {
  return add(id, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
}

CudnnGraphBuilder::Tensor CudnnGraphBuilder::intermediate(const CudnnSizes& sizes, cudnnDataType_t dtype) {
  return add(next_id_++, dtype, sizes, row_major(sizes), true, false);
}

const CudnnDescriptor& CudnnGraphBuilder::descriptor(const Tensor& tensor) const {
  return std::find_if(tensors_.begin(), tensors_.end(),
                      [&](const auto& one) { return one.first == tensor.id; })
      ->second;
}

void CudnnGraphBuilder::matmul(const Tensor& a, const Tensor& b, const Tensor& result) {
  CudnnDescriptor& kind = details_.emplace_back(library_, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  kind.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
  kind.finalize();
  CudnnDescriptor& operation = operations_.emplace_back(library_, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, descriptor(a));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, descriptor(b));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, descriptor(result));
  operation.finalize();
}

void CudnnGraphBuilder::pointwise(cudnnPointwiseMode_t mode, const std::vector<Tensor>& operands,
                                  const Tensor& result, cudnnDataType_t computed_in) {
  CudnnDescriptor& kind = details_.emplace_back(library_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  kind.set(CUDNN_ATTR_POINTWISE_MODE, mode);
  kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, computed_in);
  kind.finalize();
  constexpr cudnnBackendAttributeName_t kOperands[] = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                                                       CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                                       CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  CudnnDescriptor& operation =
      operations_.emplace_back(library_, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
  for (size_t i = 0; i < operands.size(); ++i) operation.set(kOperands[i], descriptor(operands[i]));
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, descriptor(result));
  operation.finalize();
}

CudnnGraphBuilder::Tensor CudnnGraphBuilder::pointwise(cudnnPointwiseMode_t mode,
                                                       const std::vector<Tensor>& operands) {
  const Tensor result = intermediate(operands[0].sizes);
  pointwise(mode, operands, result);
  return result;
}

CudnnGraphBuilder::Tensor CudnnGraphBuilder::index(const Tensor& like, int64_t axis) {
  const Tensor result = intermediate(like.sizes, CUDNN_DATA_INT32);
  CudnnDescriptor& kind = details_.emplace_back(library_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_POINTWISE_GEN_INDEX);
  kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_INT32);
  kind.set(CUDNN_ATTR_POINTWISE_AXIS, axis);
  kind.finalize();
  CudnnDescriptor& operation =
      operations_.emplace_back(library_, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, descriptor(like));
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, descriptor(result));
  operation.finalize();
  return result;
}

CudnnGraphBuilder::Tensor CudnnGraphBuilder::lower_triangle(const Tensor& x, const Tensor& otherwise) {
  const Tensor row = index(x, 2), column = index(x, 3);
  const Tensor is_below = intermediate(x.sizes, CUDNN_DATA_BOOLEAN);
  pointwise(CUDNN_POINTWISE_CMP_GE, {row, column}, is_below, CUDNN_DATA_BOOLEAN);
  return pointwise(CUDNN_POINTWISE_BINARY_SELECT, {x, otherwise, is_below});
}

void CudnnGraphBuilder::reduce(cudnnReduceTensorOp_t operation, const Tensor& x, const Tensor& result) {
  CudnnDescriptor& kind = details_.emplace_back(library_, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  kind.set(CUDNN_ATTR_REDUCTION_OPERATOR, operation);
  kind.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  kind.finalize();
  CudnnDescriptor& node = operations_.emplace_back(library_, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  node.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
  node.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, descriptor(x));
  node.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, descriptor(result));
  node.finalize();
}

CudnnGraphBuilder::Tensor CudnnGraphBuilder::transposed(const Tensor& x, cudnnDataType_t dtype) {
  CudnnSizes sizes = x.sizes, strides = x.strides;
  std::swap(sizes[2], sizes[3]);
  std::swap(strides[2], strides[3]);
  const Tensor result = add(next_id_++, dtype, sizes, strides, true, false);
  CudnnDescriptor& operation = operations_.emplace_back(library_, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, descriptor(x));
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, descriptor(result));
  operation.finalize();
  return result;
}

CudnnDescriptor CudnnGraphBuilder::finish(cudnnHandle_t handle) const {
  CudnnDescriptor graph(library_, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  std::vector<cudnnBackendDescriptor_t> operations;
  for (const CudnnDescriptor& operation : operations_) operations.push_back(operation.get());
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(operations),
            operations.data());
  if (handle != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle);
  graph.finalize();
  return graph;
}

// ---- Plans.

std::optional<CudnnPlan> plan_of(const CudnnLibrary& library, const CudnnDescriptor& graph,
                                 cudnnHandle_t handle, const CudnnDescriptor* properties,
                                 int64_t most_workspace_bytes) {
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    CudnnDescriptor heuristic(library, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, mode);
    if (properties != nullptr) heuristic.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *properties);
    if (!heuristic.try_finalize()) continue;
    for (const CudnnDescriptor& engine :
         heuristic.descriptors(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)) {
      CudnnDescriptor plan(library, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      if (handle != nullptr) plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle);
      if (properties != nullptr) plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *properties);
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine);
      if (!plan.try_finalize()) continue;
      const int64_t bytes = plan.number(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
      if (bytes <= most_workspace_bytes) return CudnnPlan{std::move(plan), bytes};
    }
  }
  return std::nullopt;
}

}  // namespace kumi
