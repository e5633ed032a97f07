#include "frontend/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "graph/pipeline.h"
#include "graph/uses.h"
#include "runtime/initialize.h"
#include "runtime/state_files.h"

namespace kumi {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

PlanOptions options_for(const Module& module, int64_t window) {
  PlanOptions options;
  for (const auto& [name, number] : {std::pair<std::string, int64_t>{"batch", 1}, {"seq", window}})
    for (const auto& size : module.sizes)
      if (size.first == name) options.sizes[name] = number;
  return options;
}

// Does every run read all of the value? Not where rows are picked from it.
bool is_read_whole(const Graph& graph, const Uses& uses, ValueId value) {
  for (NodeId n : uses.consumers[value]) {
    const Node& node = graph.nodes[n];
    if (op_of(node).is_view ? is_read_whole(graph, uses, node.results[0])
                            : fusion_of(graph, node) != Fusion::kIndexing)
      return true;
  }
  return false;
}

}  // namespace

Generator::Generator(Module module, int64_t window, const StoredTensors& weights, Device& device,
                     bool use_cache)
    : window_(window) {
  module = logits_only(std::move(module));
  PlanOptions options = options_for(module, window);
  if (use_cache) {
    options.goal = Goal::kDecode;
    try {
      module = run_pipeline(module, options, "decode");
    } catch (const Error& error) {
      why_no_cache_ = error.what_happened();
      options.goal = Goal::kForward;
    }
  } else {
    why_no_cache_ = "it is not wanted";
  }
  Plan plan = make_plan(run_pipeline(std::move(module), options), dialect_of(device.name()));
  if (options.goal == Goal::kDecode)
    for (const PlanPort& input : plan.graphs.at(0).inputs)
      if (input.name == "tokens") chunk_ = numbers(input.type.shape).at(1);
  executor_ = std::make_unique<Executor>(std::move(plan), device);
  check_plan();
  const Type& logits = executor_->graph(has_cache() ? "decode" : "forward").outputs.at(0).type;
  vocab_ = logits.shape[2].number();
  dtype_ = logits.dtype;
  load_states(weights, State::kWeight, *executor_);
}

void Generator::check_plan() const {
  const int64_t positions = has_cache() ? 1 : window_;
  const GraphPlan& graph = executor_->graph(has_cache() ? "decode" : "forward");
  const Type& logits = graph.outputs.at(0).type;
  const std::vector<int64_t> shape = numbers(logits.shape);
  if (shape.size() != 3 || shape[0] != 1 || shape[1] != positions)
    throw Error(concat("the model's logits are ", display(logits))).expected("[batch, seq, vocab]");
  bool fits = false;
  for (const PlanPort& input : graph.inputs)
    fits |= input.name == "tokens" && numbers(input.type.shape) == std::vector<int64_t>{1, positions};
  for (const State& state : executor_->plan().states)
    fits = fits && (state.kind != State::kCache || state.type.shape.at(2) == Dim(window_));
  if (!fits) throw Error("the model has no input 'tokens': i32[batch, seq]");
}

std::vector<float> Generator::read_logits(int64_t row) const {
  const int64_t row_bytes = vocab_ * size_of(dtype_);
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes));
  executor_->read_output("logits", bytes.data(), row * row_bytes, row_bytes);
  return as_f32(dtype_, bytes.data(), vocab_);
}

// Adds to the cache what comes next of the text: one token, or a chunk. The last chunk is filled up behind
// the text; where that would go beyond the window, it begins earlier and computes some tokens again.
void Generator::run_piece(std::span<const int32_t> text) {
  const auto done = static_cast<int64_t>(cached_.size()), size = static_cast<int64_t>(text.size());
  const bool is_chunk = size - done > 1;
  const int64_t begin = is_chunk ? std::min(done, window_ - chunk_) : done;
  const int64_t end = is_chunk ? std::min(begin + chunk_, size) : size;
  std::vector<int32_t> tokens(text.begin() + begin, text.begin() + end);
  if (is_chunk) tokens.resize(static_cast<size_t>(chunk_), tokens.back());
  const auto position = static_cast<int32_t>(begin), last = static_cast<int32_t>(end - begin - 1);
  const Feed feeds[] = {{"tokens", DType::I32, {1, static_cast<int64_t>(tokens.size())}, tokens.data()},
                        {"position", DType::I32, {}, &position},
                        {"last", DType::I32, {}, &last}};
  executor_->run(is_chunk ? "prefill" : "decode", std::span(feeds).first(is_chunk ? 3 : 2));
  cached_.assign(text.begin(), text.begin() + end);
}

std::vector<float> Generator::next_logits(std::span<const int32_t> text) {
  if (text.empty() || static_cast<int64_t>(text.size()) > window_)
    throw Error(concat("a text of ", text.size(), " tokens")).expected(concat("1 to ", window_));
  if (!has_cache()) {
    std::vector<int32_t> padded(text.begin(), text.end());
    padded.resize(static_cast<size_t>(window_), text.back());
    const Feed feed{"tokens", DType::I32, {1, window_}, padded.data()};
    executor_->run("forward", {&feed, 1});
    return read_logits(static_cast<int64_t>(text.size()) - 1);
  }
  // The last token is computed in any case: its logits are asked for.
  const auto [differs, unused] = std::mismatch(cached_.begin(), cached_.end(), text.begin(), text.end() - 1);
  cached_.erase(differs, cached_.end());
  while (cached_.size() < text.size()) run_piece(text);
  return read_logits(0);
}

bool Generator::run(std::vector<int32_t> prompt, const GenerationOptions& options,
                    const std::function<void(int32_t)>& emit) {
  if (prompt.empty()) throw Error("there is nothing to continue: the prompt has no tokens");
  check(options.sampling);
  const uint64_t key = random_key(options.seed, "generate");
  const auto window = static_cast<size_t>(window_);
  std::vector<int32_t> text = std::move(prompt);
  size_t begin = text.size() - std::min(text.size(), window);
  statistics_ = {};
  statistics_.prompt_tokens = static_cast<int64_t>(text.size() - begin);
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    if (options.should_stop && options.should_stop()) return false;
    const Clock::time_point start = Clock::now();
    if (text.size() - begin > window) begin = text.size() - (window + 1) / 2;
    std::vector<float> logits = next_logits(std::span(text).subspan(begin));
    if (options.vocab > 0) logits.resize(std::min(logits.size(), static_cast<size_t>(options.vocab)));
    for (int32_t token : options.never)
      if (token >= 0 && static_cast<size_t>(token) < logits.size()) logits[token] = -HUGE_VALF;
    const int32_t token = choose_token(logits, options.sampling, uniform01(key, static_cast<uint64_t>(i)));
    (i == 0 ? statistics_.prompt_seconds : statistics_.seconds) += seconds_since(start);
    if (i > 0) ++statistics_.tokens;
    if (token == options.end) return true;
    emit(token);
    text.push_back(token);
  }
  return true;
}

int64_t Generator::weight_bytes() const {
  const Module& module = executor_->plan().module;
  const Graph& graph = *module.find_graph(has_cache() ? "decode" : "forward");
  const Uses uses(graph);
  int64_t bytes = 0;
  for (const Node& node : graph.nodes)
    if (node.op == "read" && is_read_whole(graph, uses, node.results[0]) &&
        module.find_state(string_attribute(node.attributes, "state"))->kind == State::kWeight)
      bytes += byte_count(graph.type(node.results[0]));
  return bytes;
}

}  // namespace kumi
