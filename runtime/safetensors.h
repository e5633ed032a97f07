// The safetensors format: weights, checkpoints and recorded batches.
//
// A file is a u64 header length, a JSON header {name: {dtype, shape, data_offsets}} and the raw
// little-endian data. Files come from strangers, so the reader believes nothing: every length,
// offset, shape and name is checked before a pointer is handed out, with the strictness of the
// reference implementation (tensors tile the data without holes or overlap). The reader maps the
// file; the writer streams into a temporary and renames it (runtime/atomic_file.h).
// Reference: github.com/huggingface/safetensors, README "Format".
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "graph/dtype.h"
#include "runtime/atomic_file.h"

namespace kumi {

// One tensor of a mapped file, row-major. `data` need not be aligned to the dtype (files of other
// writers may pad their header differently): copy it with memcpy, or check.
struct TensorView {
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;

  int64_t element_count() const { return static_cast<int64_t>(bytes) / size_of(dtype); }
};

// A file opened for reading. Views stay valid while this object (or the one it was moved to) lives.
class SafetensorsFile {
 public:
  // Maps and validates. Throws Error with the file, the tensor and the cause.
  explicit SafetensorsFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return file_.path(); }

  // All names in the order of their data in the file.
  const std::vector<std::string>& names() const { return names_; }

  // The free-form strings of "__metadata__".
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Copies bytes of one of the file's tensors without keeping the file's pages in the process's memory: for
  // what is read once. The range lies within the tensor.
  void read(const TensorView& tensor, size_t offset, size_t bytes, void* to) const;

  // nullptr if there is no tensor of that name.
  const TensorView* find(const std::string& name) const;

  // Throws Error naming the file, with "did you mean".
  const TensorView& tensor(const std::string& name) const;

 private:
  MappedFile file_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// What a tensor will look like, told before its data.
struct TensorSpec {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
};

// Writes a file tensor by tensor, in any order and in pieces, holding none of the data. The bytes
// of the finished file depend only on specs, metadata and data. In the file, tensors stand in the
// order of the list, but those with wider elements first, so that all are aligned.
class SafetensorsWriter {
 public:
  // Throws Error for a name given twice, a negative or overflowing shape, text that is not UTF-8.
  SafetensorsWriter(std::filesystem::path path, std::vector<TensorSpec> specs,
                    const std::map<std::string, std::string>& metadata = {});

  // Writes `bytes` bytes of a tensor, beginning `offset` bytes into it. Throws Error for an
  // unknown name or a range beyond the tensor. A caller writes each byte once.
  void write(const std::string& name, const void* data, size_t bytes, size_t offset = 0);

  // Publishes the file. Throws Error if a tensor was not written completely.
  void commit();

 private:
  struct Slot {
    uint64_t begin;  // of the tensor in the file
    uint64_t bytes;
    uint64_t written;
  };
  AtomicFile file_;
  std::vector<TensorSpec> specs_;
  std::unordered_map<std::string, Slot> slots_;
};

// A tensor whose data is in host memory: `data` points at the product of `shape` elements.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

// Writes a whole file atomically. Throws as SafetensorsWriter does.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace kumi
