// Tensors in safetensors files, each whole in one of them or in pieces in several.
//
// Who reads asks for a run of elements of a tensor by name; where it comes from, and on how many ranks it was
// written, is seen only here. Files are opened when something is read from them, so that a rank opens
// those that it needs. What is read is copied and leaves the process's memory: reading costs the reader's
// buffer, whatever the size of the files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/safetensors.h"

namespace kumi {

// Elements [begin, begin + count) of a tensor, in row-major order: all that its file has under the name.
struct StoredPiece {
  std::string file;  // its name, in the directory of the others
  int64_t begin = 0;
  int64_t count = 0;

  int64_t end() const { return begin + count; }
  bool operator==(const StoredPiece&) const = default;
};

struct StoredTensor {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;  // of the whole tensor
  std::vector<StoredPiece> pieces;

  int64_t element_count() const;
  bool operator==(const StoredTensor&) const = default;
};

class StoredTensors {
 public:
  // All tensors of one file. Throws Error as SafetensorsFile does.
  explicit StoredTensors(const std::filesystem::path& file);

  // Tensors whose pieces, in any order, lie in files of a directory. Opens none of them. Throws Error for a
  // name given twice, a shape that cannot be, and pieces that leave out elements, overlap or go beyond their
  // tensor, naming the tensor, the elements and the files.
  StoredTensors(std::filesystem::path directory, std::vector<StoredTensor> tensors);

  // The file, or the directory of the files: for messages.
  const std::filesystem::path& path() const { return path_; }
  // Pieces in the order of their elements.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  // nullptr if there is no tensor of that name.
  const StoredTensor* find(const std::string& name) const;

  // Copies elements [begin, begin + count) of one of the tensors, as they are stored. Throws Error naming the
  // file and the tensor if a file is missing, is no safetensors file or holds another piece than it should,
  // and for a range beyond the tensor. One thread at a time.
  void read(const StoredTensor& tensor, int64_t begin, int64_t count, void* to) const;

 private:
  const SafetensorsFile& open(const std::string& file) const;

  std::filesystem::path path_, directory_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;  // by name
  mutable std::map<std::string, SafetensorsFile> files_;
};

}  // namespace kumi
