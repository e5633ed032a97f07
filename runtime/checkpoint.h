// Checkpoints: all that a run needs to go on as if it had never stopped.
//
// A checkpoint is a directory <run>/checkpoints/step-00000100/ that appears in one rename, complete:
//   model.safetensors      the weights, under their published names
//   optimizer.safetensors  moments and the step counter
//   training.json          step, data position, seed, recipe, model settings, hashes of all files
//   and copies of small files (the model's source, the tokenizer), so that it stands by itself.
// Random numbers are functions of seed and counter (runtime/initialize.h), batches of a position
// (runtime/data_loader.h), so nothing else has to be kept. Reading trusts nothing: every file is
// checked against its hash first. The newest valid checkpoint is found by looking, not by a link.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/executor.h"
#include "runtime/safetensors.h"

namespace kumi {

struct CheckpointInfo {
  int64_t step = 0;      // steps done
  int64_t position = 0;  // the next sequence (BatchSource::position)
  uint64_t seed = 0;
  int64_t batch = 0;  // of a micro-batch
  int64_t seq = 0;
  std::string recipe;                                         // protobuf text format
  std::string model_file;                                     // the model's source in the checkpoint
  std::vector<std::pair<std::string, std::string>> settings;  // model parameters that were set
  std::string tokenizer_file;                                 // in the checkpoint; "" if there is none

  bool operator==(const CheckpointInfo&) const = default;
};

struct Checkpoint {
  std::filesystem::path path;
  CheckpointInfo info;

  std::filesystem::path weights() const { return path / "model.safetensors"; }
  std::filesystem::path optimizer() const { return path / "optimizer.safetensors"; }
  std::filesystem::path model() const { return path / info.model_file; }
  std::filesystem::path tokenizer() const { return path / info.tokenizer_file; }
};

// A file that goes into the checkpoint beside its own: name and contents.
using CheckpointFile = std::pair<std::string, std::string>;

// Writes <directory>/step-<info.step> from the executor's states and then removes all but the
// newest `keep` checkpoints (0: keeps all). Creates the directory. Throws Error (disk full, no permission);
// then there is no new checkpoint, and the old ones are as they were.
std::filesystem::path save_checkpoint(const std::filesystem::path& directory, const CheckpointInfo& info,
                                      const std::vector<CheckpointFile>& files, const Executor& executor,
                                      int64_t keep);

// Reads a checkpoint's directory and checks every file's hash. Throws Error naming the file and what is
// wrong with it.
Checkpoint open_checkpoint(const std::filesystem::path& path);

// The newest valid checkpoint in a directory of checkpoints; nothing if there is none at all or no
// directory. `warn` gets a line for each damaged one that is passed over; if all are damaged,
// throws the newest one's Error.
std::optional<Checkpoint> latest_checkpoint(const std::filesystem::path& directory,
                                            const std::function<void(const std::string&)>& warn);

// Removes what writers that were killed left behind.
void remove_unfinished_checkpoints(const std::filesystem::path& directory);

// Copies weights and optimizer states into the executor.
void restore_checkpoint(const Checkpoint& checkpoint, Executor& executor);

// Copies the tensors of the file into the states of this kind. Names and shapes must agree exactly;
// floating types are converted. Throws Error naming the file, the tensors that are missing or too
// many, or both shapes.
void load_states(const SafetensorsFile& file, State::Kind kind, Executor& executor);

// Writes the states of this kind as safetensors, atomically.
void export_states(const std::filesystem::path& path, State::Kind kind, const Executor& executor);

}  // namespace kumi
