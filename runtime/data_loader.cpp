#include "runtime/data_loader.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr int kShareBits = 53;      // a double's precision
constexpr int32_t kNoLabel = -100;  // a label that takes no part in the loss
constexpr int64_t kLastPosition = int64_t{1} << 62;
using Wide = unsigned __int128;

// The finalizer of SplitMix64: every bit of the result depends on every bit of the value.
uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

void check_part(const RankOfRanks& part) {
  if (part.ranks < 1 || part.rank < 0 || part.rank >= part.ranks)
    throw Error(concat("rank ", part.rank, " of ", part.ranks, " makes no sense"));
}

void check_position(int64_t position, int64_t end) {
  if (position < 0 || position > end)
    throw Error(concat("cannot continue at sequence ", position, " of the data"))
        .expected(concat("a position from 0 to ", end));
}

std::vector<double> normalized_weights(std::span<const double> weights, size_t files) {
  if (files == 0) throw Error("no training data: the list of token files is empty");
  if (weights.empty()) return std::vector<double>(files, 1.0 / static_cast<double>(files));
  if (weights.size() != files)
    throw Error(concat(weights.size(), " weights are given for ", files, " sources of data"));
  double sum = 0;
  for (double weight : weights) {
    if (!(weight > 0) || !std::isfinite(weight))
      throw Error(concat("the weight of a source is ", weight)).expected("a positive number");
    sum += weight;
  }
  if (!std::isfinite(sum)) throw Error("the sum of the sources' weights is not finite");
  std::vector<double> normalized;
  for (double weight : weights) normalized.push_back(weight / sum);
  return normalized;
}

void check_same_vocabulary(std::span<const TokenFile> files) {
  for (const TokenFile& file : files)
    if (file.vocab_size() != files[0].vocab_size())
      throw Error(concat("the token files have different vocabularies: ", files[0].vocab_size(), " and ",
                         file.vocab_size()))
          .at({file.path().string()});
}

// Of the first n sequences, how many a source with this share gets: n * share, rounded.
int64_t taken(int64_t n, uint64_t share) {
  return static_cast<int64_t>((static_cast<Wide>(n) * share + (Wide{1} << (kShareBits - 1))) >> kShareBits);
}

}  // namespace

int64_t permuted_index(int64_t i, int64_t size, uint64_t key) {
  // A Feistel network permutes the next power of four; walking its cycle until the value is inside
  // [0, size) permutes that. Under four steps on average.
  constexpr int kRounds = 6;
  const int half_bits =
      std::max(1, (static_cast<int>(std::bit_width(static_cast<uint64_t>(size - 1))) + 1) / 2);
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t value = static_cast<uint64_t>(i);
  do {
    uint64_t left = value >> half_bits;
    uint64_t right = value & mask;
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (mix(key + mix(right * kRounds + static_cast<uint64_t>(round))) & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits) | right;
  } while (value >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(value);
}

TextBatches::TextBatches(std::vector<TokenFile> files, TextBatchesOptions options)
    : files_(std::move(files)), options_(std::move(options)) {
  check_part(options_.part);
  if (options_.batch < 1) throw Error(concat("a batch of ", options_.batch, " sequences makes no sense"));
  if (options_.seq < 1) throw Error(concat("sequences of ", options_.seq, " tokens make no sense"));
  const std::vector<double> weights = normalized_weights(options_.weights, files_.size());
  check_same_vocabulary(files_);
  for (const TokenFile& file : files_) {
    if (file.token_count() <= options_.seq)
      throw Error(concat("the text has only ", file.token_count(), " tokens"))
          .at({file.path().string()})
          .expected(concat("at least ", options_.seq + 1, ", for one sequence of ", options_.seq))
          .hint("use more text or shorter sequences");
    windows_.push_back((file.token_count() - 1) / options_.seq);
  }
  // Sources are split off one by one, each taking its share of what is left: with two roundings of
  // one running total a source could have to give a sequence back.
  double left = 0;
  for (double weight : weights) left += weight;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double share = i + 1 == weights.size() ? 1.0 : std::min(1.0, weights[i] / left);
    shares_.push_back(static_cast<uint64_t>(std::llround(std::ldexp(share, kShareBits))));
    left -= weights[i];
  }
}

TextBatches::Origin TextBatches::origin(int64_t n) const {
  size_t file = 0;
  for (;; ++file) {
    const int64_t before = taken(n, shares_[file]);
    if (taken(n + 1, shares_[file]) > before || file + 1 == files_.size()) {
      n = before;
      break;
    }
    n -= before;
  }
  const int64_t epoch = n / windows_[file];
  const uint64_t key = mix(mix(mix(options_.seed) + file) + static_cast<uint64_t>(epoch));
  return {file, epoch, permuted_index(n % windows_[file], windows_[file], key)};
}

void TextBatches::next(int32_t* tokens, int32_t* labels) {
  const int64_t seq = options_.seq;
  const int64_t first = position_ + options_.part.rank * options_.batch;
  for (int64_t i = 0; i < options_.batch; ++i) {
    const Origin from = origin(first + i);
    files_[from.file].copy(from.window * seq, seq, tokens + i * seq);
    files_[from.file].copy(from.window * seq + 1, seq, labels + i * seq);
  }
  position_ += options_.batch * options_.part.ranks;
}

void TextBatches::seek(int64_t position) {
  check_position(position, kLastPosition);
  position_ = position;
}

SafetensorsBatches::SafetensorsBatches(const std::filesystem::path& path, RankOfRanks part, int64_t batch,
                                       int64_t vocab_size)
    : file_(path), part_(part) {
  check_part(part);
  tokens_ = &file_.tensor("tokens");
  labels_ = &file_.tensor("labels");
  auto fail = [&path](const std::string& cause) {
    throw Error(cause)
        .at({path.string()})
        .expected("tensors 'tokens' and 'labels', both I32 [steps, batch, seq]");
  };
  for (const auto& [name, tensor] : {std::pair{"tokens", tokens_}, std::pair{"labels", labels_}}) {
    if (tensor->dtype != DType::I32) fail(concat("tensor '", name, "' is ", to_string(tensor->dtype)));
    if (tensor->shape.size() != 3)
      fail(concat("tensor '", name, "' has ", tensor->shape.size(), " dimensions"));
    if (std::find(tensor->shape.begin(), tensor->shape.end(), 0) != tensor->shape.end())
      fail(concat("tensor '", name, "' is empty"));
  }
  if (tokens_->shape != labels_->shape) fail("'tokens' and 'labels' have different shapes");
  steps_ = tokens_->shape[0];
  file_batch_ = tokens_->shape[1];
  seq_ = tokens_->shape[2];
  batch_ = batch != 0 ? batch : file_batch_ / part.ranks;
  if (batch_ < 1 || file_batch_ / part.ranks < batch_ || file_batch_ % (batch_ * part.ranks) != 0)
    throw Error(concat("the file's batch of ", file_batch_, " cannot be dealt to ", part.ranks, " ranks",
                       batch != 0 ? concat(" in batches of ", batch) : ""))
        .at({path.string()});
  if (vocab_size == 0) return;
  for (const auto& [name, tensor] : {std::pair{"tokens", tokens_}, std::pair{"labels", labels_}})
    for (int64_t i = 0; i < tensor->element_count(); ++i) {
      int32_t id = 0;
      std::memcpy(&id, tensor->data + i * 4, sizeof id);
      if ((id < 0 || id >= vocab_size) && !(tensor == labels_ && id == kNoLabel))
        throw Error(concat("tensor '", name, "' has the id ", id, " at element ", i))
            .at({path.string()})
            .expected(concat("ids from 0 to ", vocab_size - 1, tensor == labels_ ? ", or -100" : ""));
    }
}

void SafetensorsBatches::next(int32_t* tokens, int32_t* labels) {
  if (*remaining() == 0)
    throw Error(concat("the recorded batches are used up: the file has ", steps_, " steps"))
        .at({file_.path().string()})
        .hint("run fewer steps");
  const int64_t row_bytes = seq_ * 4;
  const int64_t begin = (position_ + part_.rank * batch_) * row_bytes;
  std::memcpy(tokens, tokens_->data + begin, static_cast<size_t>(batch_ * row_bytes));
  std::memcpy(labels, labels_->data + begin, static_cast<size_t>(batch_ * row_bytes));
  position_ += batch_ * part_.ranks;
}

void SafetensorsBatches::seek(int64_t position) {
  check_position(position, steps_ * file_batch_);
  position_ = position;
}

std::optional<int64_t> SafetensorsBatches::remaining() const {
  return (steps_ * file_batch_ - position_) / (batch_ * part_.ranks);
}

Prefetcher::Prefetcher(std::unique_ptr<BatchSource> source, int depth)
    : source_(std::move(source)),
      batch_(source_->batch()),
      seq_(source_->seq()),
      depth_(static_cast<size_t>(std::max(1, depth))) {
  start();
}

Prefetcher::~Prefetcher() {
  stop();
}

void Prefetcher::start() {
  position_ = source_->position();
  remaining_ = source_->remaining();
  ready_.clear();
  stopping_ = false;
  worker_ = std::thread([this] { work(); });
}

void Prefetcher::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (worker_.joinable()) worker_.join();
}

void Prefetcher::work() {
  for (;;) {
    Prepared prepared;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || ready_.size() < depth_; });
      if (stopping_) return;
      if (!free_.empty()) {
        prepared = std::move(free_.back());
        free_.pop_back();
      }
    }
    try {
      prepared.tokens.resize(static_cast<size_t>(batch_ * seq_));
      prepared.labels.resize(static_cast<size_t>(batch_ * seq_));
      source_->next(prepared.tokens.data(), prepared.labels.data());
      prepared.position_after = source_->position();
    } catch (...) {
      prepared.failure = std::current_exception();
    }
    const bool failed = prepared.failure != nullptr;
    {
      std::lock_guard lock(mutex_);
      ready_.push_back(std::move(prepared));
    }
    changed_.notify_all();
    if (failed) return;  // the failure stays in front of the queue until seek()
  }
}

void Prefetcher::next(int32_t* tokens, int32_t* labels) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ready_.empty(); });
  if (ready_.front().failure) std::rethrow_exception(ready_.front().failure);
  Prepared prepared = std::move(ready_.front());
  ready_.pop_front();
  position_ = prepared.position_after;
  if (remaining_) --*remaining_;
  lock.unlock();
  changed_.notify_all();
  std::copy(prepared.tokens.begin(), prepared.tokens.end(), tokens);
  std::copy(prepared.labels.begin(), prepared.labels.end(), labels);
  lock.lock();
  free_.push_back(std::move(prepared));
}

int64_t Prefetcher::position() const {
  std::lock_guard lock(mutex_);
  return position_;
}

void Prefetcher::seek(int64_t position) {
  stop();
  try {
    source_->seek(position);
  } catch (...) {
    source_->seek(position_);  // the source is ahead by what was prepared
    start();
    throw;
  }
  start();
}

std::optional<int64_t> Prefetcher::remaining() const {
  std::lock_guard lock(mutex_);
  return remaining_;
}

double unigram_entropy(std::span<const TokenFile> files, std::span<const double> weights) {
  const std::vector<double> normalized = normalized_weights(weights, files.size());
  check_same_vocabulary(files);
  std::vector<double> probability(static_cast<size_t>(files[0].vocab_size()));
  for (size_t f = 0; f < files.size(); ++f) {
    if (files[f].token_count() == 0) throw Error("the token file is empty").at({files[f].path().string()});
    const std::vector<int64_t> counts = files[f].histogram();
    const double scale = normalized[f] / static_cast<double>(files[f].token_count());
    for (size_t id = 0; id < counts.size(); ++id) probability[id] += scale * static_cast<double>(counts[id]);
  }
  double entropy = 0;
  for (double p : probability)
    if (p > 0) entropy -= p * std::log(p);
  return entropy;
}

}  // namespace kumi
