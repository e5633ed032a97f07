// The data loader's promises: proportions, every sequence once an epoch, the same batches after a
// resume and for any number of ranks.
#include "runtime/data_loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <set>
#include <stdexcept>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

class DataLoaderTest : public testing::Test {
 protected:
  DataLoaderTest() {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / (std::string("kumi_data_loader_") + test->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~DataLoaderTest() override { fs::remove_all(folder_); }

  // A file of `tokens` ids that count up from `begin`, in one document.
  TokenFile counting_file(const std::string& name, int32_t begin, int32_t tokens,
                          int64_t vocab_size = 60000) {
    std::vector<int32_t> ids(static_cast<size_t>(tokens - 1));
    std::iota(ids.begin(), ids.end(), begin);
    TokenFileWriter writer(folder_ / name, 0, vocab_size, 2);
    writer.append_document(ids);
    writer.commit();
    return TokenFile(folder_ / name);
  }

  std::vector<TokenFile> two_files() {
    std::vector<TokenFile> files;
    files.push_back(counting_file("en", 1000, 997));
    files.push_back(counting_file("ja", 5000, 203));
    return files;
  }

  fs::path recorded(const std::vector<int64_t>& shape, DType dtype = DType::I32,
                    std::vector<int64_t> labels_shape = {}) {
    if (labels_shape.empty()) labels_shape = shape;
    int64_t count = 1;
    for (int64_t dimension : shape) count *= dimension;
    std::vector<int64_t> storage(static_cast<size_t>(count) + 64);
    auto* values = reinterpret_cast<int32_t*>(storage.data());
    std::iota(values, values + count, 0);
    const std::vector<TensorToWrite> tensors = {{"tokens", dtype, shape, values},
                                                {"labels", dtype, labels_shape, values}};
    const fs::path path = folder_ / "batches.safetensors";
    write_safetensors(path, tensors);
    return path;
  }

  fs::path folder_;
};

struct Batch {
  std::vector<int32_t> tokens;
  std::vector<int32_t> labels;
  bool operator==(const Batch&) const = default;
};

Batch next(BatchSource& source) {
  const size_t size = static_cast<size_t>(source.batch() * source.seq());
  Batch batch{std::vector<int32_t>(size, -1), std::vector<int32_t>(size, -1)};
  source.next(batch.tokens.data(), batch.labels.data());
  return batch;
}

TEST(PermutedIndex, IsAPermutation) {
  for (int64_t size : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1000, 4097}) {
    for (uint64_t key : {0ull, 1ull, 0xdeadbeefull}) {
      std::set<int64_t> seen;
      for (int64_t i = 0; i < size; ++i) {
        const int64_t value = permuted_index(i, size, key);
        ASSERT_GE(value, 0);
        ASSERT_LT(value, size);
        seen.insert(value);
      }
      EXPECT_EQ(static_cast<int64_t>(seen.size()), size) << "key " << key;
    }
  }
}

TEST(PermutedIndex, Shuffles) {
  constexpr int64_t kSize = 10000;
  int64_t fixed = 0;
  int64_t neighbours = 0;
  double distance = 0;
  for (int64_t i = 0; i + 1 < kSize; ++i) {
    const int64_t value = permuted_index(i, kSize, 5);
    fixed += value == i;
    neighbours += std::abs(permuted_index(i + 1, kSize, 5) - value) == 1;
    distance += std::abs(static_cast<double>(value - i)) / kSize;
  }
  // A random permutation has 1 and 2 of these on average; its mean distance is a third of the size.
  EXPECT_LT(fixed, 8);
  EXPECT_LT(neighbours, 12);
  EXPECT_NEAR(distance / kSize, 1.0 / 3, 0.02);
  EXPECT_NE(permuted_index(0, kSize, 5), permuted_index(0, kSize, 6));
}

TEST(PermutedIndex, TakesTheLargestSizes) {
  constexpr int64_t kSize = (int64_t{1} << 62) - 57;
  for (int64_t i : {int64_t{0}, kSize / 2, kSize - 1}) {
    const int64_t value = permuted_index(i, kSize, 3);
    EXPECT_GE(value, 0);
    EXPECT_LT(value, kSize);
  }
}

TEST_F(DataLoaderTest, LabelsAreTheFollowingTokens) {
  TextBatches source(two_files(), {.batch = 3, .seq = 10, .weights = {1, 1}});
  for (int i = 0; i < 50; ++i) {
    const Batch batch = next(source);
    for (size_t row = 0; row < 3; ++row)
      for (size_t j = 0; j < 10; ++j) {
        const int32_t token = batch.tokens[row * 10 + j];
        const int32_t label = batch.labels[row * 10 + j];
        EXPECT_TRUE(label == token + 1 || label == 2) << token << " -> " << label;
        if (j + 1 < 10) {
          EXPECT_EQ(label, batch.tokens[row * 10 + j + 1]);
        }
      }
  }
  EXPECT_EQ(source.position(), 150);
  EXPECT_EQ(source.remaining(), std::nullopt);
}

TEST_F(DataLoaderTest, KeepsProportionsAtEveryMoment) {
  const std::vector<double> weights = {0.88, 0.12};
  TextBatches source(two_files(), {.seq = 10, .weights = weights});
  int64_t first = 0;
  for (int64_t n = 0; n < 10000; ++n) {
    first += source.origin(n).file == 0;
    // Half a sequence is what rounding may do.
    ASSERT_LE(std::abs(static_cast<double>(first) - 0.88 * static_cast<double>(n + 1)), 0.5 + 1e-6) << n;
  }
  EXPECT_EQ(first, 8800);
}

TEST_F(DataLoaderTest, KeepsProportionsOfManySources) {
  const std::vector<double> weights = {87.7, 12.0, 0.3, 5, 1e-3};
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<TokenFile> files;
  for (size_t i = 0; i < weights.size(); ++i) files.push_back(counting_file(std::to_string(i), 100, 50));
  TextBatches source(std::move(files), {.seq = 4, .weights = weights});
  std::vector<int64_t> counts(weights.size());
  for (int64_t n = 0; n < 200000; ++n) {
    ++counts[source.origin(n).file];
    if (n % 97 != 0) continue;
    for (size_t i = 0; i < weights.size(); ++i)
      ASSERT_LE(std::abs(static_cast<double>(counts[i]) - weights[i] / sum * static_cast<double>(n + 1)), 1.5)
          << "source " << i << " at " << n;
  }
}

TEST_F(DataLoaderTest, GivesEverySequenceOnceAnEpoch) {
  TextBatches source(two_files(), {.seq = 10, .weights = {3, 1}, .seed = 9});
  std::vector<std::vector<std::vector<int64_t>>> windows(2);  // [file][epoch]
  for (int64_t n = 0; n < 1000; ++n) {
    const TextBatches::Origin from = source.origin(n);
    auto& epochs = windows[from.file];
    ASSERT_LE(from.epoch, static_cast<int64_t>(epochs.size()));
    if (from.epoch == static_cast<int64_t>(epochs.size())) {
      if (!epochs.empty()) {
        ASSERT_EQ(static_cast<int64_t>(epochs.back().size()), source.windows(from.file));
      }
      epochs.emplace_back();
    }
    epochs.back().push_back(from.window);
  }
  EXPECT_EQ(source.windows(0), 99);
  EXPECT_EQ(source.windows(1), 20);
  for (auto& epochs : windows) {
    ASSERT_GE(epochs.size(), 3u);
    EXPECT_NE(epochs[0], epochs[1]);  // shuffled anew
    for (size_t e = 0; e + 1 < epochs.size(); ++e) {
      std::sort(epochs[e].begin(), epochs[e].end());
      for (size_t i = 0; i < epochs[e].size(); ++i) ASSERT_EQ(epochs[e][i], static_cast<int64_t>(i));
    }
  }
}

TEST_F(DataLoaderTest, EveryTokenButTheFirstIsALabelOnce) {
  std::vector<TokenFile> files;
  files.push_back(counting_file("a", 100, 41));
  TextBatches source(std::move(files), {.batch = 2, .seq = 8});
  std::vector<int32_t> labels;
  for (int64_t n = 0; n < source.windows(0) + 1; n += 2) {
    const Batch batch = next(source);
    labels.insert(labels.end(), batch.labels.begin(), batch.labels.end());
  }
  labels.resize(static_cast<size_t>(source.windows(0)) * 8);
  std::sort(labels.begin(), labels.end());
  EXPECT_EQ(labels.size(), 40u);
  EXPECT_EQ(labels[0], 2);
  for (size_t i = 1; i < labels.size(); ++i) EXPECT_EQ(labels[i], 100 + static_cast<int32_t>(i));
}

TEST_F(DataLoaderTest, ResumesAtAnyPosition) {
  const TextBatchesOptions options = {.batch = 4, .seq = 10, .weights = {0.7, 0.3}, .seed = 3};
  TextBatches whole(two_files(), options);
  std::vector<Batch> expected;
  std::vector<int64_t> positions;
  for (int i = 0; i < 60; ++i) {
    positions.push_back(whole.position());
    expected.push_back(next(whole));
  }
  for (size_t split = 0; split < expected.size(); ++split) {
    TextBatches resumed(two_files(), options);
    resumed.seek(positions[split]);
    for (size_t i = split; i < std::min(split + 3, expected.size()); ++i)
      EXPECT_EQ(next(resumed), expected[i]);
  }
}

TEST_F(DataLoaderTest, GlobalBatchDoesNotDependOnTheRanks) {
  constexpr int64_t kGlobal = 12;
  std::vector<Batch> expected;
  TextBatches whole(two_files(), {.batch = kGlobal, .seq = 10, .weights = {0.7, 0.3}});
  for (int i = 0; i < 10; ++i) expected.push_back(next(whole));
  for (int ranks : {2, 3, 4, 6, 12}) {
    std::vector<Batch> joined(expected.size());
    for (int rank = 0; rank < ranks; ++rank) {
      TextBatches part(two_files(),
                       {.batch = kGlobal / ranks, .seq = 10, .weights = {0.7, 0.3}, .part = {rank, ranks}});
      for (Batch& batch : joined) {
        const Batch piece = next(part);
        batch.tokens.insert(batch.tokens.end(), piece.tokens.begin(), piece.tokens.end());
        batch.labels.insert(batch.labels.end(), piece.labels.begin(), piece.labels.end());
      }
      EXPECT_EQ(part.position(), whole.position());
    }
    EXPECT_EQ(joined, expected) << ranks << " ranks";
  }
}

TEST_F(DataLoaderTest, SeedsDiffer) {
  TextBatches a(two_files(), {.batch = 8, .seq = 10, .seed = 1});
  TextBatches b(two_files(), {.batch = 8, .seq = 10, .seed = 2});
  EXPECT_NE(next(a), next(b));
}

TEST_F(DataLoaderTest, RefusesNonsense) {
  const auto refuses = [this](TextBatchesOptions options) {
    EXPECT_THROW(TextBatches(two_files(), std::move(options)), Error);
  };
  refuses({.batch = 0, .seq = 10});
  refuses({.seq = 0});
  refuses({.seq = 203});
  refuses({.seq = 10, .weights = {1}});
  refuses({.seq = 10, .weights = {1, 0}});
  refuses({.seq = 10, .weights = {1, -1}});
  refuses({.seq = 10, .weights = {1, NAN}});
  refuses({.seq = 10, .weights = {1e308, 1e308}});
  refuses({.seq = 10, .part = {2, 2}});
  refuses({.seq = 10, .part = {0, 0}});
  EXPECT_THROW(TextBatches({}, {.seq = 10}), Error);
  std::vector<TokenFile> files = two_files();
  files.push_back(counting_file("other", 3, 100, 50000));
  EXPECT_THROW(TextBatches(std::move(files), {.seq = 10}), Error);
  TextBatches source(two_files(), {.seq = 10});
  EXPECT_THROW(source.seek(-1), Error);
}

TEST_F(DataLoaderTest, UnigramEntropy) {
  // Half of one file is separators: documents of one id.
  const auto file_of = [this](const std::string& name, int32_t first, int32_t kinds) {
    TokenFileWriter writer(folder_ / name, 0, 100, 2);
    for (int32_t i = 0; i < 64; ++i) writer.append_document(std::vector<int32_t>{first + i % kinds});
    writer.commit();
    return TokenFile(folder_ / name);
  };
  std::vector<TokenFile> files;
  files.push_back(file_of("a", 10, 1));
  EXPECT_NEAR(unigram_entropy(files), std::log(2), 1e-12);
  files.push_back(file_of("b", 20, 4));
  // p(separator) = 1/2, p(10) = w/2, p(20..23) = (1 - w)/8 each.
  const double w = 0.88;
  const double expected = 0.5 * std::log(2) - w / 2 * std::log(w / 2) - (1 - w) / 2 * std::log((1 - w) / 8);
  EXPECT_NEAR(unigram_entropy(files, std::vector<double>{22, 3}), expected, 1e-12);
  EXPECT_THROW(unigram_entropy(files, std::vector<double>{1}), Error);
  EXPECT_THROW(unigram_entropy({}), Error);
}

TEST_F(DataLoaderTest, ReadsRecordedBatches) {
  SafetensorsBatches source(recorded({3, 4, 5}));
  EXPECT_EQ(source.batch(), 4);
  EXPECT_EQ(source.seq(), 5);
  EXPECT_EQ(source.steps(), 3);
  for (int32_t step = 0; step < 3; ++step) {
    EXPECT_EQ(source.remaining(), 3 - step);
    const Batch batch = next(source);
    for (int32_t i = 0; i < 20; ++i) EXPECT_EQ(batch.tokens[static_cast<size_t>(i)], step * 20 + i);
    EXPECT_EQ(batch.labels, batch.tokens);
  }
  EXPECT_EQ(source.remaining(), 0);
  EXPECT_THROW(next(source), Error);
  EXPECT_EQ(source.position(), 12);
  source.seek(4);
  EXPECT_EQ(next(source).tokens[0], 20);
  EXPECT_THROW(source.seek(13), Error);
}

TEST_F(DataLoaderTest, DealsRecordedBatchesToRanksAndMicroBatches) {
  const fs::path path = recorded({2, 4, 3});
  SafetensorsBatches second(path, {1, 2});
  EXPECT_EQ(second.batch(), 2);
  EXPECT_EQ(next(second).tokens[0], 6);
  EXPECT_EQ(next(second).tokens[0], 18);
  SafetensorsBatches micro(path, {1, 2}, 1);
  EXPECT_EQ(micro.remaining(), 4);
  EXPECT_EQ(next(micro).tokens, (std::vector<int32_t>{3, 4, 5}));
  EXPECT_EQ(next(micro).tokens, (std::vector<int32_t>{9, 10, 11}));
  EXPECT_THROW(SafetensorsBatches(path, {0, 3}), Error);
  EXPECT_THROW(SafetensorsBatches(path, {0, 8}), Error);
  EXPECT_THROW(SafetensorsBatches(path, {0, 2}, 3), Error);
  EXPECT_THROW(SafetensorsBatches(path, {0, 2}, -1), Error);
  EXPECT_THROW(SafetensorsBatches(path, {0, 1}, int64_t{1} << 62), Error);
}

TEST_F(DataLoaderTest, RefusesOtherTensors) {
  EXPECT_THROW(SafetensorsBatches(recorded({3, 4, 5}, DType::I64)), Error);
  EXPECT_THROW(SafetensorsBatches(recorded({12, 5})), Error);
  EXPECT_THROW(SafetensorsBatches(recorded({3, 0, 5})), Error);
  EXPECT_THROW(SafetensorsBatches(recorded({3, 4, 5}, DType::I32, {3, 5, 4})), Error);
  EXPECT_THROW(SafetensorsBatches(recorded({3, 4, 5}), {}, 0, 59), Error);
  EXPECT_NO_THROW(SafetensorsBatches(recorded({3, 4, 5}), {}, 0, 60));
  const int32_t value = -100;
  const fs::path path = folder_ / "ignored.safetensors";
  write_safetensors(path, std::vector<TensorToWrite>{{"tokens", DType::I32, {1, 1, 1}, &value}});
  EXPECT_THROW(SafetensorsBatches{path}, Error);
  write_safetensors(path, std::vector<TensorToWrite>{{"tokens", DType::I32, {1, 1, 1}, &value},
                                                     {"labels", DType::I32, {1, 1, 1}, &value}});
  EXPECT_THROW(SafetensorsBatches(path, {}, 0, 10), Error);  // a token may not be -100
}

TEST_F(DataLoaderTest, PrefetcherGivesTheSameBatches) {
  const TextBatchesOptions options = {.batch = 2, .seq = 10};
  TextBatches plain(two_files(), options);
  Prefetcher prefetcher(std::make_unique<TextBatches>(two_files(), options));
  for (int i = 0; i < 200; ++i) {
    EXPECT_EQ(prefetcher.position(), plain.position());
    EXPECT_EQ(next(prefetcher), next(plain));
  }
  prefetcher.seek(6);
  plain.seek(6);
  EXPECT_EQ(prefetcher.position(), 6);
  EXPECT_EQ(next(prefetcher), next(plain));
  EXPECT_THROW(prefetcher.seek(-1), Error);
  EXPECT_EQ(prefetcher.position(), 8);
  EXPECT_EQ(next(prefetcher), next(plain));
  EXPECT_EQ(prefetcher.remaining(), std::nullopt);
}

TEST_F(DataLoaderTest, PrefetcherEndsAsItsSource) {
  Prefetcher prefetcher(std::make_unique<SafetensorsBatches>(recorded({3, 4, 5})), 8);
  for (int32_t step = 0; step < 3; ++step) {
    EXPECT_EQ(prefetcher.remaining(), 3 - step);
    EXPECT_EQ(next(prefetcher).tokens[0], step * 20);
  }
  EXPECT_EQ(prefetcher.remaining(), 0);
  EXPECT_THROW(next(prefetcher), Error);
  EXPECT_THROW(next(prefetcher), Error);
  prefetcher.seek(8);
  EXPECT_EQ(next(prefetcher).tokens[0], 40);
}

TEST_F(DataLoaderTest, PrefetcherStopsWhileWorking) {
  for (int i = 0; i < 50; ++i) {
    Prefetcher prefetcher(
        std::make_unique<TextBatches>(two_files(), TextBatchesOptions{.batch = 4, .seq = 10}));
    if (i % 2 == 0) next(prefetcher);
  }
}

}  // namespace
}  // namespace kumi
