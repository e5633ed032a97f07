// What cuDNN shall compute, described through its graph API: tensors, operations on them, the graph of these,
// and a plan for a GPU to run it.
//
// A description is made of descriptors, each a list of attributes that is finalized before others may refer
// to it. Nothing here needs a GPU: a graph can be planned for a GPU that only its properties stand for.
// https://docs.nvidia.com/deeplearning/cudnn/backend/latest/
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "graph/error.h"
#include "runtime/cuda/cudnn.h"

namespace kumi {

class CudnnLibrary {
 public:
  // Throws Error if it is missing, too old to be relied on, or made for a CUDA newer than `newest_cuda` (13).
  explicit CudnnLibrary(int newest_cuda);

  const CudnnFunctions& functions() const { return functions_; }
  size_t version() const { return version_; }  // 91900 for 9.19.0
  std::string name() const;                    // "cuDNN 9.19.0"

  // Throws Error "cuDNN cannot <what>" with the library's own text.
  template <typename... Parts>
  void check(cudnnStatus_t status, const Parts&... what) const {
    if (status != CUDNN_STATUS_SUCCESS) fail(status, concat(what...));
  }

 private:
  [[noreturn]] void fail(cudnnStatus_t status, const std::string& what) const;

  SharedLibrary library_;
  CudnnFunctions functions_;
  size_t version_ = 0;
};

class CudnnDescriptor {
 public:
  CudnnDescriptor(const CudnnLibrary& library, cudnnBackendDescriptorType_t type);
  ~CudnnDescriptor();
  CudnnDescriptor(CudnnDescriptor&& other) noexcept;
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept;

  cudnnBackendDescriptor_t get() const { return descriptor_; }

  void set(cudnnBackendAttributeName_t name, int64_t value) { set(name, CUDNN_TYPE_INT64, 1, &value); }
  void set(cudnnBackendAttributeName_t name, bool value) { set(name, CUDNN_TYPE_BOOLEAN, 1, &value); }
  void set(cudnnBackendAttributeName_t name, cudnnDataType_t value) {
    set(name, CUDNN_TYPE_DATA_TYPE, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, cudnnPointwiseMode_t value) {
    set(name, CUDNN_TYPE_POINTWISE_MODE, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, cudnnReduceTensorOp_t value) {
    set(name, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, cudnnBackendHeurMode_t value) {
    set(name, CUDNN_TYPE_HEUR_MODE, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, cudnnHandle_t value) { set(name, CUDNN_TYPE_HANDLE, 1, &value); }
  void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.descriptor_);
  }
  // Several elements, or those of a type without a function of its own.
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
           const void* elements);

  // Is what has been set possible? Throws Error if it is nonsense.
  void finalize();
  // The same for what the library may be unable to do.
  bool try_finalize();

  // One element. Throws Error if there is none.
  int64_t number(cudnnBackendAttributeName_t name) const;
  // Finds the descriptors that it holds, for which `type` says what they are.
  std::vector<CudnnDescriptor> descriptors(cudnnBackendAttributeName_t name,
                                           cudnnBackendDescriptorType_t type) const;

 private:
  const CudnnLibrary* library_;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

using CudnnSizes = std::array<int64_t, 4>;  // batch, heads, rows, columns
CudnnSizes row_major(const CudnnSizes& sizes);

// Describes one operation after the other. Tensors without an id of their own are intermediate: they have no
// place in memory. Sums and what is between operations are in f32 unless said otherwise.
class CudnnGraphBuilder {
 public:
  struct Tensor {
    int64_t id = 0;
    CudnnSizes sizes{}, strides{};
  };

  explicit CudnnGraphBuilder(const CudnnLibrary& library) : library_(library) {}

  // In memory, at an address that is a multiple of 16 bytes, given at each run under the id.
  Tensor tensor(int64_t id, cudnnDataType_t dtype, const CudnnSizes& sizes, const CudnnSizes& strides);
  // One f32, at an address of the host.
  Tensor scalar(int64_t id);
  Tensor intermediate(const CudnnSizes& sizes, cudnnDataType_t dtype = CUDNN_DATA_FLOAT);

  // Products of the last two axes. Where b has fewer heads than a, each is that of several heads of a.
  void matmul(const Tensor& a, const Tensor& b, const Tensor& result);
  // Of `operands` (one to three, smaller ones repeated): into a result, or one shaped like the first.
  void pointwise(cudnnPointwiseMode_t mode, const std::vector<Tensor>& operands, const Tensor& result,
                 cudnnDataType_t computed_in = CUDNN_DATA_FLOAT);
  Tensor pointwise(cudnnPointwiseMode_t mode, const std::vector<Tensor>& operands);
  // x where its row number is no less than its column number, `otherwise` elsewhere.
  Tensor lower_triangle(const Tensor& x, const Tensor& otherwise);
  // Over the axes of which the result has one element.
  void reduce(cudnnReduceTensorOp_t operation, const Tensor& x, const Tensor& result);
  // The same elements, rows and columns exchanged.
  Tensor transposed(const Tensor& x, cudnnDataType_t dtype);

  // All of the above. `handle` may be null where the graph is planned for properties.
  CudnnDescriptor finish(cudnnHandle_t handle) const;

 private:
  Tensor add(int64_t id, cudnnDataType_t dtype, const CudnnSizes& sizes, const CudnnSizes& strides,
             bool is_virtual, bool is_by_value);
  Tensor index(const Tensor& like, int64_t axis);
  const CudnnDescriptor& descriptor(const Tensor& tensor) const;

  const CudnnLibrary& library_;
  std::vector<std::pair<int64_t, CudnnDescriptor>> tensors_;  // by id
  std::vector<CudnnDescriptor> details_;                      // what operations refer to
  std::vector<CudnnDescriptor> operations_;
  int64_t next_id_ = int64_t{1} << 20;  // of intermediate tensors
};

struct CudnnPlan {
  CudnnDescriptor plan;
  int64_t workspace_bytes = 0;
};

// The first of what the library's heuristics propose that it can run in at most `most_workspace_bytes`, for
// the GPU of the handle or, without one, for that of the properties (CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR).
std::optional<CudnnPlan> plan_of(const CudnnLibrary& library, const CudnnDescriptor& graph,
                                 cudnnHandle_t handle, const CudnnDescriptor* properties,
                                 int64_t most_workspace_bytes);

}  // namespace kumi
