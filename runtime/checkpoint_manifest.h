// What a checkpoint says about itself: training.json, written last and believed only after its own hash.
//
// Format 2 (format 1 had no ranks and no tensors: each file had whole ones, as it says itself):
//   step, data_position, seed, batch, seq, recipe, model, tokenizer   the run (CheckpointInfo)
//   ranks     how many have written it
//   hashes    of every other file, by name
//   tensors   by kind: name, dtype, shape and pieces [file, first element, count]
//   hash      of all of these
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runtime/stored_tensors.h"

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

struct CheckpointManifest {
  CheckpointInfo info;
  int64_t ranks = 1;
  std::map<std::string, std::string> hashes;  // by file
  bool has_tensors = true;                    // false: format 1
  std::vector<StoredTensor> weights, optimizer;
};

// XXH3 of 64 bits, as 16 hexadecimal digits.
std::string hash_text(uint64_t hash);

// Throws Error for text that is not UTF-8.
std::string manifest_text(const CheckpointManifest& manifest);

// Throws Error for what is damaged or cannot be: a number out of range, a file outside of the checkpoint, a
// tensor's piece in a file without a hash. How pieces fit together is the readers' (StoredTensors).
CheckpointManifest parse_manifest(const std::string& text);

}  // namespace kumi
