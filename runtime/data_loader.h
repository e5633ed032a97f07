// Batches for training, as a pure function of a position.
//
// A BatchSource deals out an endless (or finite) list of sequences, numbered from 0. The only state is the
// number of the next sequence, so a run resumed from a checkpoint gets exactly the batches that would have
// come. Of every `batch * ranks` consecutive sequences, rank r takes the r-th run of `batch`: the
// global batch is the same set however many ranks share it.
//
// Text: which source gives sequence n follows from n and the weights alone (rounded shares, so
// proportions never drift), and a source's sequences are shuffled anew every epoch by a keyed
// permutation that is computed, not stored.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "runtime/safetensors.h"
#include "runtime/token_file.h"

namespace kumi {

class BatchSource {
 public:
  virtual ~BatchSource() = default;

  // Sequences this rank gets a call, and their length.
  virtual int64_t batch() const = 0;
  virtual int64_t seq() const = 0;

  // Fills tokens and labels, both i32 [batch, seq] row-major, and advances by batch * ranks
  // sequences. Throws Error when the source has run out, and leaves the position as it was.
  virtual void next(int32_t* tokens, int32_t* labels) = 0;

  // The number of the next sequence of the global batch: what a checkpoint stores.
  virtual int64_t position() const = 0;

  // Continues at a position. Throws Error if it is negative or beyond the end.
  virtual void seek(int64_t position) = 0;

  // How often next() can be called from here; nothing if there is no end.
  virtual std::optional<int64_t> remaining() const = 0;
};

// This process's part of every global batch.
struct RankOfRanks {
  int rank = 0;
  int ranks = 1;
};

struct TextBatchesOptions {
  int64_t batch = 1;                 // sequences this rank gets a call
  int64_t seq = 1;                   // tokens in one
  std::vector<double> weights = {};  // one a file, positive, of any sum; empty: equal
  uint64_t seed = 0;                 // of the shuffle
  RankOfRanks part = {};
};

// A weighted mix of token files. A file's documents lie end to end with separators and are cut
// into windows of seq + 1 ids, one id shared with the next window: tokens are the first seq,
// labels the last seq, so that every id but the first is a label once an epoch.
class TextBatches : public BatchSource {
 public:
  // Throws Error for weights or sizes that make no sense, files of different vocabularies and a
  // file shorter than seq + 1 ids.
  TextBatches(std::vector<TokenFile> files, TextBatchesOptions options);

  int64_t batch() const override { return options_.batch; }
  int64_t seq() const override { return options_.seq; }
  void next(int32_t* tokens, int32_t* labels) override;
  int64_t position() const override { return position_; }
  void seek(int64_t position) override;
  std::optional<int64_t> remaining() const override { return std::nullopt; }

  const std::vector<TokenFile>& files() const { return files_; }

  // Windows of one file in an epoch.
  int64_t windows(size_t file) const { return windows_[file]; }

  // Where sequence `n` of the global stream comes from: for logs and tests.
  struct Origin {
    size_t file;
    int64_t epoch;   // of that file
    int64_t window;  // begins at id window * seq
    bool operator==(const Origin&) const = default;
  };
  Origin origin(int64_t n) const;

 private:
  std::vector<TokenFile> files_;
  TextBatchesOptions options_;
  std::vector<int64_t> windows_;
  std::vector<uint64_t> shares_;  // of file i among the files i, i+1, ...; in units of 2^-53
  int64_t position_ = 0;
};

// Recorded batches: a safetensors file with `tokens` and `labels`, both i32 [steps, batch, seq].
// Labels may be -100 (no target). The file's rows are numbered through; `batch * ranks` must
// divide the file's batch, so that a step of the file is one or several whole calls (micro-batches).
class SafetensorsBatches : public BatchSource {
 public:
  // batch 0 takes the file's batch divided by the ranks; vocab_size 0 skips the check that ids are
  // in [0, vocab_size). Throws Error with the file, the tensor and the cause.
  explicit SafetensorsBatches(const std::filesystem::path& path, RankOfRanks part = {}, int64_t batch = 0,
                              int64_t vocab_size = 0);

  int64_t batch() const override { return batch_; }
  int64_t seq() const override { return seq_; }
  void next(int32_t* tokens, int32_t* labels) override;
  int64_t position() const override { return position_; }
  void seek(int64_t position) override;
  std::optional<int64_t> remaining() const override;

  // Of the file.
  int64_t steps() const { return steps_; }
  int64_t file_batch() const { return file_batch_; }

 private:
  SafetensorsFile file_;
  const TensorView* tokens_ = nullptr;
  const TensorView* labels_ = nullptr;
  RankOfRanks part_;
  int64_t steps_ = 0;
  int64_t file_batch_ = 0;
  int64_t seq_ = 0;
  int64_t batch_ = 0;
  int64_t position_ = 0;
};

// Prepares batches in a background thread while the caller computes. Behaves as the source it
// owns: position() and remaining() are those of the batches handed out, and an exception of the
// source is thrown by the call to next() that would have met it.
class Prefetcher : public BatchSource {
 public:
  explicit Prefetcher(std::unique_ptr<BatchSource> source, int depth = 2);
  ~Prefetcher() override;

  int64_t batch() const override { return batch_; }
  int64_t seq() const override { return seq_; }
  void next(int32_t* tokens, int32_t* labels) override;
  int64_t position() const override;
  void seek(int64_t position) override;
  std::optional<int64_t> remaining() const override;

 private:
  struct Prepared {
    std::vector<int32_t> tokens;
    std::vector<int32_t> labels;
    int64_t position_after = 0;
    std::exception_ptr failure;
  };
  void start();
  void stop();
  void work();

  std::unique_ptr<BatchSource> source_;  // used by the worker only, while it runs
  const int64_t batch_;
  const int64_t seq_;
  const size_t depth_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Prepared> ready_;
  std::vector<Prepared> free_;
  int64_t position_ = 0;
  std::optional<int64_t> remaining_;
  bool stopping_ = false;
  std::thread worker_;
};

// The i-th element of a pseudo-random permutation of [0, size), chosen by `key`; i in [0, size).
int64_t permuted_index(int64_t i, int64_t size, uint64_t key);

// Entropy in nats of the token distribution of the mix: the cross-entropy that a model reaches
// which knows only how often each token occurs. Weights as in TextBatchesOptions.
double unigram_entropy(std::span<const TokenFile> files, std::span<const double> weights = {});

}  // namespace kumi
