// Collectives between GPUs without any: each rank is a thread with a fake GPU of its own, whose streams come
// in random order, and the fake NCCL between them (tests/fake_cuda).
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "codegen/plan.h"
#include "codegen/planned_traffic.h"
#include "runtime/executor.h"
#include "runtime/local_transport.h"
#include "tests/support/collective_cases.h"
#include "tests/support/environment_variable.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/fake_device.h"
#include "tests/support/placed_states.h"

namespace kumi {
namespace {

using testing::Communicators;
using testing::EnvironmentVariable;
using testing::FakeDevice;
using testing::message_of;
using testing::on_ranks;

class CudaCollectives : public testing::FakeCudaTest {
 protected:
  void SetUp() override {
    FakeCudaTest::SetUp();
    if (IsSkipped()) return;
    if (!std::filesystem::exists(kToolkit + "/lib64/libnccl.so.2"))
      GTEST_SKIP() << "the CUDA device has been built without NCCL";
  }

  // The memory of each rank is that of a GPU of its own.
  void on_gpus(const Communicators& hosts,
               const std::function<void(Device& gpu, Communicator& hosts)>& work) const {
    on_ranks(hosts, [&](Communicator& communicator) {
      const std::unique_ptr<Device> gpu = open_gpu(static_cast<int>(communicator.rank()));
      work(*gpu, communicator);
    });
  }

 private:
  EnvironmentVariable devices_{"FAKE_CUDA_DEVICES", "8"};
  EnvironmentVariable search_{"KUMI_MATMUL_SEARCH", "0"};
};

TEST_F(CudaCollectives, GiveWhatTheySay) {
  constexpr uint32_t kSeed = 7;
  for (const Mesh mesh : {Mesh{1, 1}, Mesh{1, 3}, Mesh{2, 2}, Mesh{2, 3}}) {
    SCOPED_TRACE(concat(mesh.nodes, " x ", mesh.local));
    const std::vector<testing::CollectiveCase> cases = testing::random_cases(mesh, kSeed);
    on_gpus(make_local_communicators(mesh), [&](Device& gpu, Communicator& hosts) {
      const std::unique_ptr<Communicator> gpus = gpu.communicator(hosts);
      ASSERT_NE(gpus, nullptr);
      testing::run_and_check(*gpus, gpu, cases, /*in_order=*/false);
      testing::check_traffic(*gpus, cases);
      EXPECT_EQ(gpus->all_gather_text("x").size(), static_cast<size_t>(mesh.ranks()));
    });
  }
}

// ------------------------------------------------------------------------------ whole plans

constexpr int64_t kPiece = 6;

Type floats(int64_t count) {
  return Type{DType::F32, {Dim(count)}};
}

// Of a kernel that the fake driver knows, on `count` floats.
Kernel fake_kernel(const std::string& name, int64_t count) {
  Kernel kernel;
  kernel.name = concat(name, " of ", count);
  kernel.buffers = 1;
  kernel.source =
      concat("KUMI_KERNEL(", name, "_0, 1, ", count, ") { ((float*)buffers.data[0])[threadIdx.x] ",
             name == "double" ? "*= 2.0f" : "+= 1.0f", "; }\n");
  KernelPhase phase(name + "_0", count, count);
  phase.blocks = 1, phase.threads = count;
  kernel.phases = {phase};
  return kernel;
}

// Graphs over the states `shard`, a piece, and `whole`, all pieces:
//   gradient:   x = x + 1; early = all_gather(the first piece of x), which nothing waits for;
//               shard = reduce_scatter(x) + 1; gathered = 2 all_gather(shard) beside
//               total = all_reduce(x), which nothing waits for, either; product = gathered . x
//   replicate:  whole = all_gather(shard), which runs on
//   use:        whole = whole + 1
Plan plan_on(const Mesh& mesh) {
  const int64_t ranks = mesh.ranks(), all = ranks * kPiece;
  Plan plan;
  plan.module.mesh = mesh;
  plan.states = testing::placed_states(
      {{"shard", State::kWeight, floats(kPiece), {}, {}}, {"whole", State::kWeight, floats(all), {}, {}}});
  plan.kernels = {fake_kernel("add_one", all), fake_kernel("add_one", kPiece), fake_kernel("double", all)};
  MatmulCall dot;
  dot.m = dot.n = 1, dot.k = all;
  dot.a_batch_stride = dot.b_batch_stride = all, dot.c_batch_stride = 1;
  dot.a_row_stride = all, dot.a_column_stride = 1;
  dot.b_row_stride = 1, dot.b_column_stride = 1, dot.c_row_stride = 1;
  plan.matmuls = {dot};
  const auto call = [&](CollectiveCall::Kind kind, int64_t elements) {
    return CollectiveCall{kind, MeshGroup::kWorld, ranks, {{DType::F32, elements}}};
  };
  plan.collectives = {call(CollectiveCall::kReduceScatter, kPiece), call(CollectiveCall::kAllGather, kPiece),
                      call(CollectiveCall::kAllReduce, all)};
  const BufferSlot shard{0, 0}, whole{1, 0}, x{kNone, 0}, early{kNone, 512}, gathered{kNone, 1024},
      total{kNone, 2048}, product{kNone, 3072};
  const auto kernel = [](int32_t index, BufferSlot slot, std::vector<int32_t> waits = {}) {
    Step step;
    step.name = "kernel";
    step.kernel = index;
    step.buffers = {slot};
    step.waits = std::move(waits);
    return step;
  };
  const auto collective = [](const char* name, int32_t index, BufferSlot in, BufferSlot out) {
    Step step;
    step.name = name;
    step.scope = "layer";
    step.collective = index;
    step.buffers = {in, out};
    return step;
  };
  GraphPlan gradient;
  gradient.name = "gradient";
  gradient.arena_bytes = 4096;
  gradient.inputs = {{"x", floats(all), x, std::nullopt}};
  gradient.outputs = {{"early", floats(all), early, std::nullopt},
                      {"gathered", floats(all), gathered, std::nullopt},
                      {"total", floats(all), total, std::nullopt},
                      {"product", Type{DType::F32, {}}, product, std::nullopt}};
  Step matmul;
  matmul.name = "matmul";
  matmul.matmul = 0;
  matmul.buffers = {gathered, x, product};
  gradient.steps = {kernel(0, x),
                    collective("all_gather", 1, x, early),
                    collective("reduce_scatter", 0, x, shard),
                    kernel(1, shard, {2}),
                    collective("all_gather", 1, shard, gathered),
                    collective("all_reduce", 2, x, total),
                    kernel(2, gathered, {4}),
                    matmul};
  GraphPlan replicate;
  replicate.name = "replicate";
  replicate.steps = {collective("all_gather", 1, shard, whole)};
  GraphPlan use;
  use.name = "use";
  use.steps = {kernel(0, whole)};
  plan.graphs = {gradient, replicate, use};
  return plan;
}

// What a run of the plan leaves, on a rank.
std::vector<float> history(Executor& executor, int64_t rank) {
  std::vector<float> all;
  const auto read = [&](const char* state) {
    std::vector<float> values(static_cast<size_t>(byte_count(executor.state(state).type)) / sizeof(float));
    executor.read_state(state, values.data());
    all.insert(all.end(), values.begin(), values.end());
  };
  for (int step = 0; step < 6; ++step) {
    const int64_t count = executor.plan().module.mesh.ranks() * kPiece;
    for (int micro = 0; micro < (step % 2 == 0 ? 1 : 3); ++micro) {
      std::vector<float> x(static_cast<size_t>(count));
      for (size_t i = 0; i < x.size(); ++i)
        x[i] = static_cast<float>((static_cast<int64_t>(i) * 3 + rank * 5 + step + micro) % 11);
      executor.run("gradient", std::vector<Feed>{{"x", DType::F32, {count}, x.data()}});
    }
    for (const char* name : {"early", "gathered", "total"}) {
      const HostTensor tensor = executor.output(name);
      const std::vector<float> values =
          as_f32(tensor.dtype, tensor.data.data(), tensor.data.size() / sizeof(float));
      all.insert(all.end(), values.begin(), values.end());
    }
    all.push_back(executor.scalar_output("product"));
    executor.run("replicate", {});
    if (step % 2 == 0) executor.run("use", {});
    if (step % 3 == 0) read("whole");
    if (step == 4) executor.run("replicate", {});
  }
  executor.finish();
  read("shard");
  read("whole");
  return all;
}

// The same on the host's memory, with kernels of the test.
std::vector<std::vector<float>> expected_histories(const Mesh& mesh) {
  std::vector<std::vector<float>> histories(static_cast<size_t>(mesh.ranks()));
  on_ranks(make_local_communicators(mesh), [&](Communicator& communicator) {
    FakeDevice device;
    const auto each = [](int64_t count, float (*function)(float)) {
      return [=](void* const* buffers) {
        auto* const x = static_cast<float*>(buffers[0]);
        std::transform(x, x + count, x, function);
      };
    };
    const int64_t all = mesh.ranks() * kPiece;
    for (int64_t count : {kPiece, all})
      device.functions[concat("add_one of ", count)] = each(count, [](float x) { return x + 1; });
    device.functions[concat("double of ", all)] = each(all, [](float x) { return x * 2; });
    device.functions["matmul"] = [=](void* const* buffers) {
      const auto *a = static_cast<const float*>(buffers[0]), *b = static_cast<const float*>(buffers[1]);
      double sum = 0;
      for (int64_t i = 0; i < all; ++i) sum += double{a[i]} * b[i];
      *static_cast<float*>(buffers[2]) = static_cast<float>(sum);
    };
    Executor executor(plan_on(mesh), device, &communicator);
    histories[static_cast<size_t>(communicator.rank())] = history(executor, communicator.rank());
  });
  return histories;
}

class CudaPlans : public CudaCollectives, public ::testing::WithParamInterface<const char*> {};

// Whatever order the streams come in, of those that events allow.
TEST_P(CudaPlans, GiveWhatTheyGiveOnTheHost) {
  EnvironmentVariable graphs("KUMI_CUDA_GRAPHS", GetParam());
  const Mesh mesh{2, 2};
  const std::vector<std::vector<float>> expected = expected_histories(mesh);
  for (int round = 0; round < 2; ++round) {
    log();
    on_gpus(make_local_communicators(mesh), [&](Device& gpu, Communicator& hosts) {
      Executor executor(plan_on(mesh), gpu, &hosts);
      EXPECT_EQ(history(executor, hosts.rank()), expected[static_cast<size_t>(hosts.rank())])
          << "rank " << hosts.rank();
      // Replayed or not, what is counted is what is planned: 12 runs of the gradient, 7 gathers after it.
      const std::vector<PlannedTraffic> planned = planned_traffic(executor.plan());
      for (const Traffic& sent : executor.communicator()->traffic()) {
        int64_t bytes = 0, collectives = 0;
        for (const PlannedTraffic& entry : planned)
          if (entry.kind == sent.kind) {
            const int64_t runs = entry.graph == "gradient" ? 12 : 7;
            bytes += runs * entry.bytes;
            collectives += runs * entry.collectives;
          }
        EXPECT_EQ(sent.bytes, bytes) << to_string(sent.kind);
        EXPECT_EQ(sent.collectives, collectives) << to_string(sent.kind);
      }
    });
    // On each of 4 ranks 11 of 12 runs of the gradient and 2 of 3 of "use" are replayed, and none of the
    // graph whose collective runs on.
    const std::string text = log();
    size_t launches = 0;
    for (size_t at = text.find("graph\n"); at != std::string::npos; at = text.find("graph\n", at + 1))
      ++launches;
    EXPECT_EQ(launches, GetParam() == std::string("1") ? 4u * (11 + 2) : 0u);
    EXPECT_EQ(used_bytes(), 0u);
    EXPECT_EQ(contexts(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Graphs, CudaPlans, ::testing::Values("1", "0"), [](const auto& info) {
  return info.param == std::string("1") ? "replayed" : "off";
});

TEST_F(CudaCollectives, AreProfiledByTheGpusClock) {
  const Mesh mesh{1, 2};
  on_gpus(make_local_communicators(mesh), [&](Device& gpu, Communicator& hosts) {
    Executor executor(plan_on(mesh), gpu, &hosts);
    (void)history(executor, hosts.rank());
    std::vector<LaunchSpan> timeline;
    timeline.reserve(1000);
    executor.set_profiling(true, &timeline);
    (void)history(executor, hosts.rank());
    for (const StepTime& time : executor.profile()) {
      if (time.name == "matmul") {
        EXPECT_EQ(time.runs, 12);
        EXPECT_EQ(std::llround(time.seconds * 1e3), 24);  // 2 ms each
      }
      if (time.is_collective()) {
        EXPECT_GT(time.runs, 0) << time.name;
        EXPECT_GT(time.bytes_sent, 0) << time.name;
      }
    }
    size_t communications = 0;
    for (const LaunchSpan& span : timeline) {
      EXPECT_LE(span.begin, span.end);
      if (span.kind == LaunchSpan::kCommunication) ++communications;
    }
    // Whoever reads a state waits for what it needs without measuring that.
    EXPECT_GT(communications, 12u * 4);
    executor.set_profiling(false);
    executor.set_one_by_one(true);
    (void)history(executor, hosts.rank());
    executor.set_one_by_one(false);
    (void)history(executor, hosts.rank());
  });
}

// ------------------------------------------------------------------------------ faults

CommunicatorOptions impatient() {
  CommunicatorOptions options;
  options.timeout_seconds = 1;
  return options;
}

// What a sum over all ranks gives: the message of the error when the host waits for it.
std::string message_of_sum(Device& gpu, Communicator& gpus, int64_t elements = 12) {
  const CollectiveCall call{
      CollectiveCall::kAllReduce, MeshGroup::kWorld, gpus.mesh().ranks(), {{DType::F32, elements}}};
  void* buffer = nullptr;
  std::unique_ptr<Collective> sum;
  const std::string message = message_of([&] {
    buffer = gpu.allocate(static_cast<size_t>(elements) * sizeof(float));
    void* buffers[] = {buffer, buffer};
    sum = gpus.prepare(call, "all_reduce of model.layers.3");
    sum->start(buffers);
    sum->wait();
    gpu.synchronize();
  });
  gpu.free(buffer);
  return message;
}

TEST_F(CudaCollectives, TheRankThatDoesNotComeIsNamed) {
  on_gpus(make_local_communicators({1, 3}, impatient()), [&](Device& gpu, Communicator& hosts) {
    const std::unique_ptr<Communicator> gpus = gpu.communicator(hosts);
    EXPECT_EQ(message_of_sum(gpu, *gpus), "(no error)");
    if (hosts.rank() == 1) return std::this_thread::sleep_for(std::chrono::seconds(4));
    const std::string message = message_of_sum(gpu, *gpus);
    EXPECT_EQ(message.find(concat("rank 1 is 1 collective behind, and has started none since all_reduce of "
                                  "model.layers.3: rank ",
                                  hosts.rank(), " has waited 1 s in all_reduce of model.layers.3")),
              0U)
        << message;
    EXPECT_NE(message_of_sum(gpu, *gpus), "(no error)");
  });
}

TEST_F(CudaCollectives, ARankThatDoesNotConnectIsNamed) {
  on_gpus(make_local_communicators({1, 2}, impatient()), [&](Device& gpu, Communicator& hosts) {
    const std::unique_ptr<Communicator> gpus = gpu.communicator(hosts);
    if (hosts.rank() == 1) return std::this_thread::sleep_for(std::chrono::seconds(3));
    const std::string message = message_of_sum(gpu, *gpus);
    EXPECT_NE(message.find("rank 1 is 1 collective behind"), std::string::npos) << message;
  });
}

TEST_F(CudaCollectives, AnAbortEndsTheOthers) {
  on_gpus(make_local_communicators({1, 3}), [&](Device& gpu, Communicator& hosts) {
    const std::unique_ptr<Communicator> gpus = gpu.communicator(hosts);
    EXPECT_EQ(message_of_sum(gpu, *gpus), "(no error)");
    if (hosts.rank() == 1) return gpus->abort("the disk is full");
    const std::string message = message_of_sum(gpu, *gpus);
    EXPECT_EQ(message.find("rank 1 has ended the job: the disk is full"), 0U) << message;
  });
}

TEST_F(CudaCollectives, ABrokenConnectionIsAnErrorOfTheCollective) {
  EnvironmentVariable broken("FAKE_NCCL_BROKEN_RANK", "1");
  on_gpus(make_local_communicators({1, 2}), [&](Device& gpu, Communicator& hosts) {
    const std::unique_ptr<Communicator> gpus = gpu.communicator(hosts);
    EXPECT_EQ(message_of_sum(gpu, *gpus), "(no error)");
    hosts.barrier();  // the connection breaks with the second sum, which no rank is to begin before
    const std::string message = message_of_sum(gpu, *gpus);
    EXPECT_EQ(
        message.find("NCCL cannot carry out sums over the group world: remote error (the connection of a "
                     "rank is broken)"),
        0U)
        << message;
    EXPECT_NE(message.find("while all_reduce of model.layers.3"), std::string::npos) << message;
    EXPECT_NE(message.find("NCCL_DEBUG=INFO"), std::string::npos) << message;
  });
}

// Of the fake: what the tests above would miss without it.
TEST_F(CudaCollectives, CallsThatDifferAreErrors) {
  on_gpus(make_local_communicators({1, 2}), [&](Device& gpu, Communicator& hosts) {
    const std::unique_ptr<Communicator> gpus = gpu.communicator(hosts);
    const std::string message = message_of_sum(gpu, *gpus, 12 + hosts.rank());
    EXPECT_NE(message.find("call 0 differs between ranks"), std::string::npos) << message;
  });
}

TEST_F(CudaCollectives, NeedAGpuForEachRank) {
  EnvironmentVariable devices("FAKE_CUDA_DEVICES", "1");
  const Communicators hosts = make_local_communicators({1, 2});
  const std::unique_ptr<Device> gpu = open_gpu();
  const std::string message = message_of([&] { gpu->communicator(*hosts[0]); });
  EXPECT_EQ(
      message.find("2 ranks are on this machine, and the driver shows 1 GPU\n  expected: a GPU for each"), 0U)
      << message;
}

TEST_F(CudaCollectives, NeedANewEnoughNccl) {
  EnvironmentVariable version("FAKE_NCCL_VERSION", "21602");
  const Communicators hosts = make_local_communicators({1, 1});
  const std::unique_ptr<Device> gpu = open_gpu();
  const std::string message = message_of([&] { gpu->communicator(*hosts[0]); });
  EXPECT_NE(message.find("training on several GPUs needs NCCL 2.18.0 or later; "), std::string::npos)
      << message;
  EXPECT_NE(message.find(" is 2.16.2"), std::string::npos) << message;
}

}  // namespace
}  // namespace kumi
