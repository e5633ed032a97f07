#include "frontend/launch.h"

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "frontend/stop_signals.h"
#include "graph/error.h"
#include "runtime/job_address.h"
#include "runtime/launcher.h"
#include "runtime/local_transport.h"
#include "runtime/open_communicator.h"

namespace kumi {
namespace {

Error unfilled(int64_t ranks, const RanksRequest& request) {
  return Error(concat("the mesh is ", request.nodes ? concat(*request.nodes) : "?", " x ",
                      request.local ? concat(*request.local) : "?", " ranks, and there ",
                      ranks == 1 ? "is " : "are ", ranks))
      .expected("mesh.nodes times mesh.local ranks")
      .hint("start that many, with mpirun -n N or --ranks N, or leave mesh out of the recipe");
}

// `local` of the launcher, or all ranks.
Mesh mesh_of(int64_t ranks, int64_t local, const RanksRequest& request) {
  if (request.local)
    local = *request.local;
  else if (request.nodes && ranks % *request.nodes == 0)
    local = ranks / *request.nodes;
  if (ranks % local != 0 || (request.nodes && *request.nodes * local != ranks))
    throw unfilled(ranks, request);
  return {ranks / local, local};
}

// The first error of the ranks: those of others that it brings down come after it.
class FirstError {
 public:
  void set(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
  }
  void rethrow_if_any() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
};

void abort_with(Communicator& communicator, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& failure) {
    communicator.abort(failure.what());
  }
}

int run_on_threads(const RanksRequest& request, const std::function<int(const Rank&)>& work) {
  const Mesh mesh = mesh_of(*request.threads, *request.threads, request);
  CommunicatorOptions options;
  options.timeout_seconds = request.timeout_seconds;
  std::vector<std::unique_ptr<Communicator>> communicators = make_local_communicators(mesh, options);
  FirstError first;
  int status = 0;
  {
    std::vector<std::jthread> threads;
    for (int64_t r = 0; r < mesh.ranks(); ++r)
      threads.emplace_back([&, r] {
        Rank rank;
        rank.communicator = communicators[static_cast<size_t>(r)].get();
        rank.device.sharers = static_cast<int>(mesh.ranks());
        rank.device.index = static_cast<int>(r);
        rank.owns_process = r == 0;
        try {
          const int own = work(rank);
          if (r == 0) status = own;
        } catch (...) {
          first.set(std::current_exception());
          abort_with(*rank.communicator, std::current_exception());
        }
      });
  }
  first.rethrow_if_any();
  return status;
}

// This process as the only rank.
int run_alone(const RanksRequest& request, const std::function<int(const Rank&)>& work) {
  if (const int64_t launched = launched_processes(); launched > 1)
    throw Error(concat("the launcher has started ", launched, " processes, and has told none of the others"))
        .expected(
            "a launcher that speaks to MPI, or MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK in the "
            "environment")
        .hint(
            "under Slurm that is srun --mpi=pmix for Open MPI and srun --mpi=pmi2 for MPICH; with --ranks 1 "
            "each process trains by itself");
  if (request.nodes.value_or(1) * request.local.value_or(1) != 1) throw unfilled(1, request);
  return work(Rank());
}

}  // namespace

Ranks Rank::ranks() const {
  if (communicator == nullptr) return {};
  Communicator* const all = communicator;
  Ranks ranks;
  ranks.rank = all->rank();
  ranks.count = all->mesh().ranks();
  ranks.all_gather_text = [all](const std::string& text) { return all->all_gather_text(text); };
  ranks.bring_text = [all](const std::string& text, int64_t from) {
    std::vector<std::string> texts = all->gather_text(all->rank() == from ? text : "");
    return texts.empty() ? std::string() : std::move(texts[static_cast<size_t>(from)]);
  };
  return ranks;
}

std::vector<std::string> Rank::all_gather_text(const std::string& text) const {
  if (communicator == nullptr) return {text};
  return communicator->all_gather_text(text);
}

std::vector<std::string> Rank::gather_text(const std::string& text) const {
  if (communicator == nullptr) return {text};
  return communicator->gather_text(text);
}

int run_on_ranks(const RanksRequest& request, const std::function<int(const Rank&)>& work) {
  if (request.threads) return run_on_threads(request, work);
  if (!is_launched_by_mpi() && !job_address()) return run_alone(request, work);
  CommunicatorOptions options;
  options.timeout_seconds = request.timeout_seconds;
  // There is no time to come to the end of a step.
  if (launcher_kills_after_signal()) options.is_told_to_end = StopSignals::terminated;
  std::unique_ptr<Communicator> communicator = open_communicator(request.local, options);
  if (request.nodes && *request.nodes != communicator->mesh().nodes)
    throw unfilled(communicator->mesh().ranks(), request);
  Rank rank;
  rank.communicator = communicator.get();
  // A machine's ranks follow each other, and machines have equally many, as in the mesh.
  rank.device.sharers = static_cast<int>(communicator->ranks_on_host());
  rank.device.index = static_cast<int>(communicator->rank() % communicator->ranks_on_host());
  try {
    return work(rank);
  } catch (...) {
    abort_with(*communicator, std::current_exception());
    (void)communicator.release();  // ends with the process, when the error has been told
    throw;
  }
}

}  // namespace kumi
