#include "runtime/state_files.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <unordered_map>

namespace kumi {
namespace {

namespace fs = std::filesystem;

const std::map<std::string, std::string> kMetadata = {{"format", "pt"}};  // as other writers have it

std::vector<const State*> states_of(State::Kind kind, const Executor& executor) {
  std::vector<const State*> states;
  for (const State& state : executor.plan().states)
    if (state.kind == kind) states.push_back(&state);
  return states;
}

// What a rank holds, of tensors that are known.
std::vector<TensorPiece> held_pieces(const State& state, const Mesh& mesh, int64_t rank) {
  const int64_t pieces = piece_count(state, mesh);
  if (pieces > 1 && state.tensors.empty())
    throw Error(concat("the state ", quoted(state.name), " is cut into ", pieces,
                       " pieces, but does not say of which tensors"))
        .at(state.location);
  return tensor_pieces(state, mesh, rank);
}

// Calls `part` with the begin and count, in elements, of one part after the other that fits into the buffer.
void in_parts(int64_t count, DType dtype, const std::function<void(int64_t begin, int64_t count)>& part) {
  const int64_t most = kStateBufferBytes / size_of(dtype);
  for (int64_t begin = 0; begin < count; begin += most) part(begin, std::min(most, count - begin));
}

// The buffer: `bytes` bytes, at most kStateBufferBytes, and as large as the largest part so far.
class Buffer {
 public:
  std::byte* of(int64_t bytes) {
    if (bytes > static_cast<int64_t>(data_.size())) data_.resize(static_cast<size_t>(bytes));
    return data_.data();
  }

 private:
  std::vector<std::byte> data_;
};

// Part of a piece in the rank's storage of its state, and in its tensor; all in bytes.
struct Part {
  int64_t in_state, in_tensor, bytes;
};
Part part_of(const TensorPiece& piece, DType dtype, int64_t begin, int64_t count) {
  const int64_t size = size_of(dtype);
  return {(piece.state_begin + begin) * size, (piece.tensor_begin + begin) * size, count * size};
}

// ------------------------------------------------------------------------------------------- loading

std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kMost = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMost); ++i) text += (i == 0 ? "" : ", ") + names[i];
  if (names.size() > kMost) text += concat(" and ", names.size() - kMost, " more");
  return text;
}

void check_names(const StoredTensors& stored, const std::vector<TensorOfState>& tensors, State::Kind kind) {
  std::vector<std::string> missing, extra, known;
  for (const TensorOfState& tensor : tensors) {
    known.push_back(tensor.name);
    if (stored.find(tensor.name) == nullptr) missing.push_back(tensor.name);
  }
  const std::set<std::string> all(known.begin(), known.end());
  for (const StoredTensor& tensor : stored.tensors())
    if (all.count(tensor.name) == 0) extra.push_back(tensor.name);
  if (!missing.empty()) {
    Error error(concat(missing.size() == 1 ? "the tensor " : "tensors ", listed(missing),
                       missing.size() == 1 ? " is missing" : " are missing"));
    if (!extra.empty())
      error.hint(concat("the file has tensors that the model does not: ", listed(extra),
                        "; is it of another model?"));
    throw error.at({stored.path()});
  }
  if (!extra.empty())
    throw Error(concat("the model has no ", to_string(kind), extra.size() == 1 ? " " : "s ", listed(extra)))
        .hint(did_you_mean(extra[0], known))
        .at({stored.path()});
}

// Of all tensors, so that one run shows every one that does not fit.
void check_shapes(const StoredTensors& stored, const std::vector<TensorOfState>& tensors) {
  constexpr size_t kMost = 5;
  std::optional<Error> first;
  size_t wrong = 0;
  for (const TensorOfState& tensor : tensors) {
    const StoredTensor& found = *stored.find(tensor.name);
    if (found.shape == numbers(tensor.shape) || ++wrong > kMost) continue;
    Error error(concat("the tensor ", tensor.name, " has shape ", to_string(found.shape)));
    error.expected(concat(display(tensor.shape), ", its shape in the model")).at({stored.path()});
    if (first)
      first->also(std::move(error));
    else
      first = std::move(error);
  }
  if (wrong > kMost)
    first->also(Error(concat(wrong - kMost, " more tensors have other shapes than in the model")));
  if (first) throw *first;
}

void check_types(const StoredTensors& stored, const std::vector<TensorOfState>& tensors) {
  for (const TensorOfState& tensor : tensors) {
    const DType found = stored.find(tensor.name)->dtype;
    if (found != tensor.dtype && !(tensor.dtype == DType::F32 && is_floating(found)))
      throw Error(concat("the tensor ", tensor.name, " has elements of type ", to_string(found)))
          .expected(concat(to_string(tensor.dtype), ", as in the model"))
          .at({stored.path()});
  }
}

void load_piece(const StoredTensors& stored, const State& state, const TensorPiece& piece, Executor* executor,
                Buffer* buffer) {
  const StoredTensor& tensor = *stored.find(piece.tensor);
  const DType dtype = state.type.dtype;
  // Parts of which what is stored and what it is converted to both fit.
  const DType wider = size_of(tensor.dtype) > size_of(dtype) ? tensor.dtype : dtype;
  in_parts(piece.count, wider, [&](int64_t begin, int64_t count) {
    std::byte* data = buffer->of(count * size_of(tensor.dtype));
    stored.read(tensor, piece.tensor_begin + begin, count, data);
    const Part part = part_of(piece, dtype, begin, count);
    if (tensor.dtype == dtype)
      executor->write_state(state.name, data, part.in_state, part.bytes);
    else
      executor->write_state(state.name, as_f32(tensor.dtype, data, count).data(), part.in_state, part.bytes);
  });
}

// ----------------------------------------------------------------------------------------- exporting

std::vector<TensorSpec> specs_of(State::Kind kind, const Executor& executor) {
  std::vector<TensorSpec> specs;
  for (const TensorOfState& tensor : tensors_of(executor.plan().states, kind))
    specs.push_back({tensor.name, tensor.dtype, numbers(tensor.shape)});
  return specs;
}

// Work that may fail between exchanges which go on all the same: after its first failure nothing is done, and
// finish() throws it.
class FailingLate {
 public:
  void run(const std::function<void()>& work) {
    if (failure_) return;
    try {
      work();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }
  bool failed() const { return failure_ != nullptr; }
  void finish() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::exception_ptr failure_;
};

// The pieces of one state, from the first rank that holds each of them.
void export_state(const State& state, const Executor& executor, const Ranks& ranks,
                  SafetensorsWriter* writer) {
  const Mesh& mesh = executor.plan().module.mesh;
  const DType dtype = state.type.dtype;
  FailingLate local;
  Buffer buffer;
  std::set<int64_t> done;
  for (int64_t from = 0; from < ranks.count; ++from) {
    if (!done.insert(piece_index(state, mesh, from)).second) continue;
    for (const TensorPiece& piece : held_pieces(state, mesh, from))
      in_parts(piece.count, dtype, [&](int64_t begin, int64_t count) {
        const Part part = part_of(piece, dtype, begin, count);
        const auto bytes = static_cast<size_t>(part.bytes), offset = static_cast<size_t>(part.in_tensor);
        if (from == 0) {
          if (!ranks.is_first()) return;
          local.run([&] {
            executor.read_state(state.name, buffer.of(part.bytes), part.in_state, part.bytes);
            writer->write(piece.tensor, buffer.of(part.bytes), bytes, offset);
          });
          return;
        }
        std::string text;
        if (ranks.rank == from)
          local.run([&] {
            text.resize(bytes);
            executor.read_state(state.name, text.data(), part.in_state, part.bytes);
          });
        if (local.failed()) text.clear();
        text = bring_text(ranks, text, from);
        // A text of another size is that of a rank which failed, and says so below.
        if (ranks.is_first() && text.size() == bytes)
          local.run([&] { writer->write(piece.tensor, text.data(), bytes, offset); });
      });
  }
  on_all_ranks(ranks, [&] { local.finish(); });
}

}  // namespace

void check_ranks(const Executor& executor, const Ranks& ranks) {
  const int64_t planned = executor.plan().module.mesh.ranks();
  if (planned != ranks.count || ranks.rank < 0 || ranks.rank >= ranks.count)
    throw Error(concat("rank ", ranks.rank, " of ", ranks.count))
        .expected(concat("one of the ", planned, " ranks of the plan's mesh"));
}

std::vector<TensorPiece> saved_pieces(const State& state, const Mesh& mesh, int64_t rank) {
  // The rank's number among those that hold the same piece.
  const int64_t own = piece_index(state, mesh, rank);
  int64_t holders = 0, number = 0;
  for (int64_t other = 0; other < mesh.ranks(); ++other) {
    if (piece_index(state, mesh, other) != own) continue;
    number += other < rank ? 1 : 0;
    ++holders;
  }
  const int64_t size = element_count(state.type.shape).number();
  const auto bound = [&](int64_t i) { return size / holders * i + std::min(i, size % holders); };
  const int64_t begin = bound(number), end = bound(number + 1);
  std::vector<TensorPiece> saved;
  for (TensorPiece piece : held_pieces(state, mesh, rank)) {
    const int64_t from = std::max(begin, piece.state_begin),
                  to = std::min(end, piece.state_begin + piece.count);
    if (from >= to) continue;
    piece.tensor_begin += from - piece.state_begin;
    piece.state_begin = from;
    piece.count = to - from;
    saved.push_back(std::move(piece));
  }
  return saved;
}

std::vector<StoredTensor> save_share(const fs::path& path, State::Kind kind, const Executor& executor,
                                     int64_t rank) {
  const Mesh& mesh = executor.plan().module.mesh;
  const std::string file = path.filename().string();
  const std::vector<const State*> states = states_of(kind, executor);
  std::vector<std::vector<TensorPiece>> pieces;  // by state
  std::vector<TensorSpec> specs;
  std::vector<StoredTensor> share;
  for (const State* state : states) {
    pieces.push_back(saved_pieces(*state, mesh, rank));
    for (const TensorPiece& piece : pieces.back()) {
      const DType dtype = state->type.dtype;
      share.push_back({piece.tensor, dtype, piece.shape, {{file, piece.tensor_begin, piece.count}}});
      const bool is_whole = piece.count == share.back().element_count();
      specs.push_back({piece.tensor, dtype, is_whole ? piece.shape : std::vector<int64_t>{piece.count}});
    }
  }
  if (share.empty() && mesh.ranks() > 1) return share;
  SafetensorsWriter writer(path, std::move(specs), kMetadata);
  Buffer buffer;
  for (size_t i = 0; i < states.size(); ++i)
    for (const TensorPiece& piece : pieces[i]) {
      const DType dtype = states[i]->type.dtype;
      in_parts(piece.count, dtype, [&](int64_t begin, int64_t count) {
        const Part part = part_of(piece, dtype, begin, count);
        executor.read_state(states[i]->name, buffer.of(part.bytes), part.in_state, part.bytes);
        writer.write(piece.tensor, buffer.of(part.bytes), static_cast<size_t>(part.bytes),
                     static_cast<size_t>(begin * size_of(dtype)));
      });
    }
  writer.commit();
  return share;
}

void load_states(const StoredTensors& stored, State::Kind kind, Executor& executor, int64_t rank) {
  const std::vector<TensorOfState> tensors = tensors_of(executor.plan().states, kind);
  check_names(stored, tensors, kind);
  check_shapes(stored, tensors);
  check_types(stored, tensors);
  Buffer buffer;
  for (const State* state : states_of(kind, executor))
    for (const TensorPiece& piece : held_pieces(*state, executor.plan().module.mesh, rank))
      load_piece(stored, *state, piece, &executor, &buffer);
}

void export_states(const fs::path& path, State::Kind kind, const Executor& executor, const Ranks& ranks) {
  check_ranks(executor, ranks);
  std::optional<SafetensorsWriter> writer;  // on rank 0
  on_all_ranks(ranks, [&] {
    if (ranks.is_first()) writer.emplace(path, specs_of(kind, executor), kMetadata);
  });
  for (const State* state : states_of(kind, executor))
    export_state(*state, executor, ranks, writer ? &*writer : nullptr);
  on_all_ranks(ranks, [&] {
    if (writer) writer->commit();
  });
}

}  // namespace kumi
