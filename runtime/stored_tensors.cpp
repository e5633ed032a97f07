#include "runtime/stored_tensors.h"

#include <algorithm>

#include "graph/error.h"
#include "graph/type.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

// "element 5", "elements 5 to 8"
std::string elements(int64_t begin, int64_t end) {
  if (end - begin == 1) return concat("element ", begin);
  return concat("elements ", begin, " to ", end - 1);
}

void check_shape(const StoredTensor& tensor) {
  int64_t bytes = size_of(tensor.dtype);
  for (int64_t size : tensor.shape)
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes))
      throw Error(concat("the tensor ", tensor.name, " cannot have the shape ", to_string(tensor.shape)));
}

// Sorts them. Together they are all of the tensor, once.
void check_pieces(StoredTensor* tensor) {
  std::vector<StoredPiece>& pieces = tensor->pieces;
  const int64_t count = tensor->element_count();
  for (const StoredPiece& piece : pieces)
    if (piece.begin < 0 || piece.count < 1 || piece.begin > count || piece.count > count - piece.begin)
      throw Error(concat(piece.file, " has ", piece.count, " elements of the tensor ", tensor->name,
                         " from element ", piece.begin, " on, which has ", count));
  std::sort(pieces.begin(), pieces.end(),
            [](const StoredPiece& a, const StoredPiece& b) { return a.begin < b.begin; });
  int64_t end = 0;
  const StoredPiece* last = nullptr;
  const auto missing = [&](int64_t next) {
    return Error(concat("no file has ", elements(end, next), " of the tensor ", tensor->name));
  };
  for (const StoredPiece& piece : pieces) {
    if (piece.begin > end) throw missing(piece.begin);
    if (piece.begin < end)
      throw Error(concat(last->file, " and ", piece.file, " both have ",
                         elements(piece.begin, std::min(end, piece.end())), " of the tensor ", tensor->name));
    end = piece.end();
    last = &piece;
  }
  if (end < count) throw missing(count);
}

}  // namespace

int64_t StoredTensor::element_count() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

StoredTensors::StoredTensors(const fs::path& file) : path_(file), directory_(file.parent_path()) {
  const std::string name = file.filename().string();
  const SafetensorsFile& opened = files_.emplace(name, SafetensorsFile(file)).first->second;
  for (const std::string& tensor : opened.names()) {
    const TensorView& view = opened.tensor(tensor);
    index_.emplace(tensor, tensors_.size());
    tensors_.push_back({tensor, view.dtype, view.shape, {}});
    if (view.element_count() > 0) tensors_.back().pieces = {{name, 0, view.element_count()}};
  }
}

StoredTensors::StoredTensors(fs::path directory, std::vector<StoredTensor> tensors)
    : path_(directory), directory_(std::move(directory)), tensors_(std::move(tensors)) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!index_.emplace(tensors_[i].name, i).second)
      throw Error(concat("the tensor ", tensors_[i].name, " is there twice"));
    check_shape(tensors_[i]);
    check_pieces(&tensors_[i]);
  }
}

const StoredTensor* StoredTensors::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const SafetensorsFile& StoredTensors::open(const std::string& file) const {
  const auto found = files_.find(file);
  if (found != files_.end()) return found->second;
  return files_.emplace(file, SafetensorsFile(directory_ / file)).first->second;
}

void StoredTensors::read(const StoredTensor& tensor, int64_t begin, int64_t count, void* to) const {
  if (begin < 0 || count < 0 || begin > tensor.element_count() || count > tensor.element_count() - begin)
    throw Error(concat(count, " elements of the tensor ", tensor.name, " from element ", begin,
                       " on, which has ", tensor.element_count()))
        .at({path_.string()});
  const int64_t end = begin + count;
  const auto element_bytes = static_cast<size_t>(size_of(tensor.dtype));
  auto* next = static_cast<std::byte*>(to);
  auto piece = std::upper_bound(tensor.pieces.begin(), tensor.pieces.end(), begin,
                                [](int64_t at, const StoredPiece& p) { return at < p.end(); });
  for (; begin < end; begin = piece->end(), ++piece) {
    const SafetensorsFile& file = open(piece->file);
    const TensorView& view = file.tensor(tensor.name);
    if (view.dtype != tensor.dtype || view.element_count() != piece->count)
      throw Error(concat("the tensor ", tensor.name, " has ", view.element_count(), " elements of type ",
                         to_string(view.dtype), " in this file"))
          .at({file.path().string()})
          .expected(concat(elements(piece->begin, piece->end()), " of ", to_string(tensor.dtype),
                           to_string(tensor.shape)));
    const auto bytes = static_cast<size_t>(std::min(end, piece->end()) - begin) * element_bytes;
    file.read(view, static_cast<size_t>(begin - piece->begin) * element_bytes, bytes, next);
    next += bytes;
  }
}

}  // namespace kumi
