#include "runtime/cuda/cuda_graph.h"

#include <type_traits>
#include <utility>
#include <vector>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr char kHint[] = "with KUMI_CUDA_GRAPHS=0 in the environment everything is launched by itself";

class CudaGraph : public Callable {
 public:
  CudaGraph(std::shared_ptr<CudaContext> context, CUgraph graph, std::vector<std::function<void()>> actions)
      : context_(std::move(context)), actions_(std::move(actions)) {
    context_->check(context_->driver().cuGraphInstantiate(&graph_, graph, 0), "make a graph ready");
  }
  ~CudaGraph() override {
    context_->try_make_current();
    context_->driver().cuGraphExecDestroy(graph_);  // what runs of it runs on
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void run(void* const*) override {
    context_->make_current();
    for (const std::function<void()>& action : actions_) action();
    context_->check(context_->driver().cuGraphLaunch(graph_, context_->stream()), "start a graph");
  }

 private:
  std::shared_ptr<CudaContext> context_;
  std::vector<std::function<void()>> actions_;
  CUgraphExec graph_ = nullptr;
};

}  // namespace

std::unique_ptr<Callable> capture_cuda_graph(std::shared_ptr<CudaContext> context,
                                             const std::function<void()>& launches) {
  const CudaDriver& driver = context->driver();
  const auto destroy = [&](CUgraph graph) { driver.cuGraphDestroy(graph); };
  using Graph = std::unique_ptr<std::remove_pointer_t<CUgraph>, decltype(destroy)>;
  try {
    context->begin_capture();
    try {
      launches();
    } catch (...) {
      try {
        (void)Graph(context->end_capture(), destroy);
      } catch (const Error&) {  // of no interest beside the first
      }
      throw;
    }
    const Graph graph(context->end_capture(), destroy);
    return std::make_unique<CudaGraph>(context, graph.get(), context->take_actions());
  } catch (Error& error) {
    throw error.while_doing("putting launches together in a graph").hint(kHint);
  }
}

}  // namespace kumi
