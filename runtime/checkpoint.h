// Checkpoints: all that a run needs to go on as if it had never stopped, on any number of ranks.
//
// A checkpoint is a directory <run>/checkpoints/step-00000100/ that appears in one rename, complete:
//   model.safetensors      the weights, under their published names
//   optimizer.safetensors  moments and the step counter
//   training.json          step, data position, seed, recipe, model settings, hashes of all files, and where
//                          each tensor is (runtime/checkpoint_manifest.h)
//   and copies of small files (the model's source, the tokenizer), so that it stands by itself.
// Several ranks write at the same time, each its share: model-00003-of-00008.safetensors and
// optimizer-00003-of-00008.safetensors have runs of elements of tensors. Who reads needs none of that: any
// number of ranks, sharded in any way, read from these files what they hold (runtime/stored_tensors.h).
// States move through one buffer of fixed size (runtime/state_files.h). Rank 0 makes the directory, writes
// training.json when all others have written and synced theirs, and renames: so a run killed at any moment
// leaves the old checkpoints or the new one as well, and at most a directory with another name, which the
// next start removes. A rank that fails tells the others, and all throw. Random numbers are functions of seed
// and counter (runtime/initialize.h), batches of a position (runtime/data_loader.h), so nothing else has to
// be kept. Reading trusts nothing: every file is checked against its hash first. The newest valid checkpoint
// is found by looking, not by a link.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/checkpoint_manifest.h"
#include "runtime/executor.h"
#include "runtime/ranks.h"
#include "runtime/stored_tensors.h"

namespace kumi {

struct Checkpoint {
  std::filesystem::path path;
  CheckpointInfo info;
  int64_t ranks = 1;  // that have written it
  std::vector<StoredTensor> weight_tensors, optimizer_tensors;

  // Throw Error if the pieces do not make up the tensors.
  StoredTensors weights() const { return {path, weight_tensors}; }
  StoredTensors optimizer() const { return {path, optimizer_tensors}; }
  std::filesystem::path model() const { return path / info.model_file; }
  std::filesystem::path tokenizer() const { return path / info.tokenizer_file; }
};

// A file that goes into the checkpoint beside its own: name and contents.
using CheckpointFile = std::pair<std::string, std::string>;

// Where several ranks are, all of them call a function that takes them, in the same order of calls; paths
// name the same files on all. An Error on one rank is thrown on all.

// Writes <directory>/step-<info.step> from the executors' states and then removes all but the
// newest `keep` checkpoints (0: keeps all). Creates the directory. Info, files and `keep` are rank 0's.
// Throws Error (disk full, no permission); then there is no new checkpoint, and the old ones are as they
// were.
std::filesystem::path save_checkpoint(const std::filesystem::path& directory, const CheckpointInfo& info,
                                      const std::vector<CheckpointFile>& files, const Executor& executor,
                                      int64_t keep, const Ranks& ranks = {});

// Reads a checkpoint's directory and checks every file's hash, each on one of the ranks. Throws Error naming
// the file and what is wrong with it.
Checkpoint open_checkpoint(const std::filesystem::path& path, const Ranks& ranks = {});

// The newest valid checkpoint in a directory of checkpoints, as rank 0 lists it; nothing if there is none at
// all or no directory. `warn` gets a line for each damaged one that is passed over, on rank 0; if all are
// damaged, throws the newest one's Error.
std::optional<Checkpoint> latest_checkpoint(const std::filesystem::path& directory,
                                            const std::function<void(const std::string&)>& warn,
                                            const Ranks& ranks = {});

// Removes what writers that were killed left behind. One rank calls it, while none saves.
void remove_unfinished_checkpoints(const std::filesystem::path& directory);

// Copies what each rank holds of weights and optimizer states into its executor.
void restore_checkpoint(const Checkpoint& checkpoint, Executor& executor, const Ranks& ranks = {});

// The tensors of a safetensors file, or the weights of a checkpoint if the path is a checkpoint's directory.
StoredTensors open_weights(const std::filesystem::path& path, const Ranks& ranks = {});

}  // namespace kumi
