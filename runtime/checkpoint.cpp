#include "runtime/checkpoint.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "graph/tensor_pieces.h"
#include "runtime/atomic_file.h"
#include "runtime/state_files.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "step-";
constexpr char kManifestFile[] = "training.json";
constexpr char kWeights[] = "model", kOptimizer[] = "optimizer";
constexpr char kSeparator = '/';  // between names of files

// model.safetensors, or model-00003-of-00008.safetensors
std::string share_name(const char* what, int64_t rank, int64_t count) {
  char part[64] = "";
  if (count > 1)
    std::snprintf(part, sizeof part, "-%05lld-of-%05lld", static_cast<long long>(rank + 1),
                  static_cast<long long>(count));
  return concat(what, part, ".safetensors");
}

std::string directory_name(int64_t step) {
  std::string digits = std::to_string(step);
  return kPrefix + std::string(digits.size() < 8 ? 8 - digits.size() : 0, '0') + digits;
}

// The step in a checkpoint's name, or nothing if it is no such name.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* begin = name.data() + sizeof kPrefix - 1;
  const char* end = name.data() + name.size();
  auto [stop, failure] = std::from_chars(begin, end, step);
  if (failure != std::errc() || stop != end || begin == end || step < 0) return std::nullopt;
  return step;
}

// Newest first.
std::vector<std::pair<int64_t, fs::path>> list_checkpoints(const fs::path& directory) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, failure))
    if (std::optional<int64_t> step = step_of(entry.path().filename().string()))
      found.emplace_back(*step, entry.path());
  std::sort(found.rbegin(), found.rend());
  return found;
}

std::string hash_of(const fs::path& path) {
  // Piece by piece, since what is mapped and looked at counts as memory of the process.
  constexpr size_t kPiece = size_t{4} << 20;
  MappedFile file(path);
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  XXH3_64bits_reset(state.get());
  for (size_t begin = 0; begin < file.size(); begin += kPiece) {
    const size_t size = std::min(kPiece, file.size() - begin);
    XXH3_64bits_update(state.get(), file.data() + begin, size);
    file.release_pages(begin, size);
  }
  return hash_text(XXH3_64bits_digest(state.get()));
}

// ------------------------------------------------------------------------------------------- saving

// What a rank tells rank 0 of its share: the hashes of its files, and by kind [tensor, file, begin, count].
std::string write_shares(const fs::path& directory, const Executor& executor, const Ranks& ranks) {
  check_ranks(executor, ranks);
  nlohmann::json report = {{"hashes", nlohmann::json::object()}};
  for (const auto& [what, kind] : {std::pair{kWeights, State::kWeight}, {kOptimizer, State::kOptimizer}}) {
    const fs::path path = directory / share_name(what, ranks.rank, ranks.count);
    nlohmann::json& pieces = report[what] = nlohmann::json::array();
    for (const StoredTensor& tensor : save_share(path, kind, executor, ranks.rank))
      for (const StoredPiece& piece : tensor.pieces)
        pieces.push_back(nlohmann::json::array({tensor.name, piece.file, piece.begin, piece.count}));
    if (!pieces.empty() || ranks.count == 1) report["hashes"][path.filename().string()] = hash_of(path);
  }
  return report.dump();
}

// All tensors of the plan's states of a kind, with the pieces that the ranks have reported.
std::vector<StoredTensor> collected(const std::vector<nlohmann::json>& reports, const char* what,
                                    State::Kind kind, const Executor& executor) {
  std::vector<StoredTensor> tensors;
  std::unordered_map<std::string, size_t> index;
  for (const TensorOfState& tensor : tensors_of(executor.plan().states, kind)) {
    index.emplace(tensor.name, tensors.size());
    tensors.push_back({tensor.name, tensor.dtype, numbers(tensor.shape), {}});
  }
  for (const nlohmann::json& report : reports)
    for (const nlohmann::json& piece : report.at(what))
      tensors.at(index.at(piece.at(0).get<std::string>()))
          .pieces.push_back(
              {piece.at(1).get<std::string>(), piece.at(2).get<int64_t>(), piece.at(3).get<int64_t>()});
  return tensors;
}

// What makes the written files a checkpoint, when it is in the directory.
void write_manifest(const fs::path& directory, const CheckpointInfo& info,
                    const std::vector<CheckpointFile>& files, const std::vector<std::string>& texts,
                    const Executor& executor) {
  CheckpointManifest manifest;
  manifest.info = info;
  manifest.ranks = static_cast<int64_t>(texts.size());
  std::vector<nlohmann::json> reports;
  for (const std::string& text : texts) {
    reports.push_back(nlohmann::json::parse(text));
    for (const auto& [name, hash] : reports.back().at("hashes").items()) manifest.hashes[name] = hash;
  }
  for (const auto& [name, contents] : files) {
    write_file_atomically(directory / name, contents);
    manifest.hashes[name] = hash_of(directory / name);
  }
  manifest.weights = collected(reports, kWeights, State::kWeight, executor);
  manifest.optimizer = collected(reports, kOptimizer, State::kOptimizer, executor);
  // Sorted, and seen to be complete before it counts.
  manifest.weights = StoredTensors(directory, std::move(manifest.weights)).tensors();
  manifest.optimizer = StoredTensors(directory, std::move(manifest.optimizer)).tensors();
  write_file_atomically(directory / kManifestFile, manifest_text(manifest));
}

void remove_checkpoint(const fs::path& path) {
  // Out of the way in one step, so that nobody finds half of it.
  fs::path doomed = path;
  doomed += ".tmp-removed";
  std::error_code failure;
  fs::remove_all(doomed, failure);
  fs::rename(path, doomed, failure);
  fs::remove_all(failure ? path : doomed, failure);
}

void remove_old_checkpoints(const fs::path& directory, int64_t keep) {
  if (keep == 0) return;
  const std::vector<std::pair<int64_t, fs::path>> all = list_checkpoints(directory);
  for (size_t i = static_cast<size_t>(keep); i < all.size(); ++i) remove_checkpoint(all[i].second);
}

// ------------------------------------------------------------------------------------------ reading

// The rank's part of the files: reading all of them on every rank would take as often as long.
void check_hashes(const fs::path& path, const std::map<std::string, std::string>& hashes,
                  const Ranks& ranks) {
  int64_t number = 0;
  for (const auto& [name, hash] : hashes)
    if (number++ % ranks.count == ranks.rank && hash_of(path / name) != hash)
      throw Error("the file is damaged: its contents are not those that were saved").at({path / name});
}

// Of a checkpoint that does not say where its tensors are: whole in one file.
std::vector<StoredTensor> tensors_of_file(const fs::path& path, const CheckpointManifest& manifest) {
  if (manifest.hashes.count(path.filename().string()) == 0)
    throw Error(concat(path.filename().string(), " is missing")).at({path.parent_path() / kManifestFile});
  return StoredTensors(path).tensors();
}

}  // namespace

fs::path save_checkpoint(const fs::path& directory, const CheckpointInfo& info,
                         const std::vector<CheckpointFile>& files, const Executor& executor, int64_t keep,
                         const Ranks& ranks) {
  const fs::path target = directory / directory_name(info.step);
  std::optional<AtomicDirectory> out;  // on rank 0
  try {
    const fs::path unfinished = result_of_first(ranks, [&] {
      std::error_code failure;
      fs::create_directories(directory, failure);
      if (failure) throw Error("cannot create the directory: " + failure.message()).at({directory});
      out.emplace(target);
      return out->path().string();
    });
    const std::vector<std::string> reports =
        results_of_all(ranks, [&] { return write_shares(unfinished, executor, ranks); });
    result_of_first(ranks, [&] {
      write_manifest(unfinished, info, files, reports, executor);
      out->commit();
      remove_old_checkpoints(directory, keep);
      return std::string();
    });
  } catch (Error& error) {
    throw error.while_doing(concat("saving the checkpoint of step ", info.step));
  }
  return target;
}

Checkpoint open_checkpoint(const fs::path& path, const Ranks& ranks) {
  const fs::path description = path / kManifestFile;
  try {
    // One rank's reading, so that all go by the same text.
    const std::string text = result_of_first(ranks, [&] { return read_file(description); });
    CheckpointManifest manifest;
    try {
      manifest = parse_manifest(text);
      // Throws if they are not complete.
      StoredTensors(path, manifest.weights);
      StoredTensors(path, manifest.optimizer);
    } catch (Error& error) {
      throw error.at({description});
    }
    on_all_ranks(ranks, [&] {
      check_hashes(path, manifest.hashes, ranks);
      if (manifest.has_tensors) return;
      manifest.weights = tensors_of_file(path / share_name(kWeights, 0, 1), manifest);
      manifest.optimizer = tensors_of_file(path / share_name(kOptimizer, 0, 1), manifest);
    });
    return {path, std::move(manifest.info), manifest.ranks, std::move(manifest.weights),
            std::move(manifest.optimizer)};
  } catch (Error& error) {
    throw error.while_doing(concat("reading the checkpoint ", path.string()));
  }
}

std::optional<Checkpoint> latest_checkpoint(const fs::path& directory,
                                            const std::function<void(const std::string&)>& warn,
                                            const Ranks& ranks) {
  std::string names = result_of_first(ranks, [&] {
    std::string all;
    for (const auto& [step, path] : list_checkpoints(directory)) all += path.filename().string() + kSeparator;
    return all;
  });
  std::optional<Error> first;
  for (size_t end = 0; (end = names.find(kSeparator)) != std::string::npos; names.erase(0, end + 1)) {
    try {
      return open_checkpoint(directory / names.substr(0, end), ranks);
    } catch (Error& error) {
      if (warn && ranks.is_first()) warn(concat("passing over a damaged checkpoint: ", error.what()));
      if (!first) first = error;
    }
  }
  if (first) throw *first;
  return std::nullopt;
}

void remove_unfinished_checkpoints(const fs::path& directory) {
  std::error_code failure;
  std::vector<fs::path> left;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, failure)) {
    const std::string name = entry.path().filename().string();
    const size_t dot = name.find(".tmp-");
    if (dot != std::string::npos && step_of(name.substr(0, dot))) left.push_back(entry.path());
  }
  for (const fs::path& path : left) fs::remove_all(path, failure);
}

void restore_checkpoint(const Checkpoint& checkpoint, Executor& executor, const Ranks& ranks) {
  on_all_ranks(ranks, [&] {
    check_ranks(executor, ranks);
    load_states(checkpoint.weights(), State::kWeight, executor, ranks.rank);
    load_states(checkpoint.optimizer(), State::kOptimizer, executor, ranks.rank);
  });
}

StoredTensors open_weights(const fs::path& path, const Ranks& ranks) {
  const std::string is_checkpoint = result_of_first(ranks, [&] {
    std::error_code failure;
    return std::string(fs::exists(path / kManifestFile, failure) ? "yes" : "");
  });
  if (!is_checkpoint.empty()) return open_checkpoint(path, ranks).weights();
  std::optional<StoredTensors> tensors;
  on_all_ranks(ranks, [&] { tensors.emplace(path); });
  return std::move(*tensors);
}

}  // namespace kumi
