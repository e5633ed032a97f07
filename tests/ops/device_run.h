// Runs graphs on a device and speaks ReferenceTensor, so that what a device computes can stand beside
// what the references say.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graph/op.h"
#include "graph/pipeline.h"
#include "runtime/executor.h"
#include "tests/graph/evaluate.h"

namespace kumi::testing {

// Rounds every element to what the tensor's element type can hold.
void round_elements(ReferenceTensor* tensor);

// As the device stores it, and back.
std::vector<std::byte> to_bytes(const ReferenceTensor& tensor);
ReferenceTensor from_bytes(DType dtype, std::vector<int64_t> shape, const std::vector<std::byte>& bytes);

// The devices that all tests of this process share.
Device& shared_device(const std::string& name);
inline Device& cpu_device() {
  return shared_device("cpu");
}

// A module through the whole pipeline, compiled.
class DeviceRun {
 public:
  explicit DeviceRun(Module module, const PlanOptions& options = {}, Device& device = cpu_device());

  // Outputs by name.
  Tensors run(const std::string& graph, const Tensors& feeds);
  void write_state(const std::string& name, const ReferenceTensor& value);
  ReferenceTensor read_state(const std::string& name) const;

  const Module& planned() const { return executor_->plan().module; }
  const Plan& plan() const { return executor_->plan(); }

 private:
  std::unique_ptr<Executor> executor_;
};

// How far a computed element may be from the reference: the result's own rounding, and that of the
// computation, which grows with the root of the number of terms added up, relative to `scale`. Terms that
// are each rounded to a narrower type before they are added up are off by that rounding, each in its own
// direction: together by some of what one term of the size of the result would be off.
struct Tolerance {
  DType computed_in = DType::F32;
  double terms = 1;
  double scale = 1;
  std::optional<DType> terms_in = std::nullopt;

  double of(DType result, double wanted) const;
};

// Relative rounding error of an element type; 0 for integers.
double unit_roundoff(DType dtype);

// Empty if all elements are near enough, else the first that is not, in words.
std::string difference(const ReferenceTensor& found, const ReferenceTensor& wanted,
                       const Tolerance& tolerance);

}  // namespace kumi::testing
