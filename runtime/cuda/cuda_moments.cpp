#include "runtime/cuda/cuda_moments.h"

#include <utility>
#include <vector>

#include "runtime/steady_clock.h"

namespace kumi {
namespace {

class CudaMoments : public Moments {
 public:
  explicit CudaMoments(std::shared_ptr<const CudaContext> context)
      : context_(std::move(context)), now_(context_, /*timed=*/true) {}

  void mark() override {
    context_->make_current();
    if (marked_ == events_.size()) events_.emplace_back(context_, /*timed=*/true);
    events_[marked_].record(context_->stream());
    ++marked_;
  }

  std::vector<int64_t> take() override {
    context_->make_current();
    std::vector<int64_t> moments;
    if (marked_ == 0) return moments;
    // All from the same moment on, so that none comes before another.
    const CudaEvent& last = events_[marked_ - 1];
    const int64_t end = moment_of(*context_, last, now_);
    for (size_t i = 0; i < marked_; ++i)
      moments.push_back(end - static_cast<int64_t>(1e6 * double{last.milliseconds_since(events_[i])}));
    marked_ = 0;
    return moments;
  }

 private:
  std::shared_ptr<const CudaContext> context_;
  std::vector<CudaEvent> events_;
  size_t marked_ = 0;
  CudaEvent now_;
};

}  // namespace

std::unique_ptr<Moments> make_cuda_moments(std::shared_ptr<const CudaContext> context) {
  context->make_current();
  return std::make_unique<CudaMoments>(std::move(context));
}

int64_t moment_of(const CudaContext& context, const CudaEvent& event, CudaEvent& now) {
  context.make_current();
  event.hold(context.stream());
  now.record(context.stream());
  now.wait();
  context.check_failure();
  return steady_nanoseconds() - static_cast<int64_t>(1e6 * double{now.milliseconds_since(event)});
}

}  // namespace kumi
