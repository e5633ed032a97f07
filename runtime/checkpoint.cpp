#include "runtime/checkpoint.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "graph/tensor_pieces.h"
#include "runtime/atomic_file.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "step-";
constexpr int kFormat = 1;
constexpr char kTrainingFile[] = "training.json";

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

std::string to_text(XXH64_hash_t hash) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
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
  return to_text(XXH3_64bits_digest(state.get()));
}

// Of all that the description says but this.
std::string hash_of_description(nlohmann::json json) {
  json.erase("hash");
  const std::string text = json.dump();
  return to_text(XXH3_64bits(text.data(), text.size()));
}

// A file name without any directory: damaged information must not lead outside.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

nlohmann::json to_json(const CheckpointInfo& info) {
  nlohmann::json settings = nlohmann::json::array();
  for (const auto& [name, value] : info.settings) settings.push_back({{"name", name}, {"value", value}});
  return {{"format", kFormat},
          {"step", info.step},
          {"data_position", info.position},
          {"seed", info.seed},
          {"batch", info.batch},
          {"seq", info.seq},
          {"recipe", info.recipe},
          {"model", {{"file", info.model_file}, {"settings", settings}}},
          {"tokenizer", info.tokenizer_file}};
}

CheckpointInfo from_json(const nlohmann::json& json) {
  if (int format = json.at("format").get<int>(); format != kFormat)
    throw Error(concat("the checkpoint has format ", format))
        .expected(concat("format ", kFormat, ", what this version of kumi reads"));
  CheckpointInfo info;
  info.step = json.at("step").get<int64_t>();
  info.position = json.at("data_position").get<int64_t>();
  info.seed = json.at("seed").get<uint64_t>();
  info.batch = json.at("batch").get<int64_t>();
  info.seq = json.at("seq").get<int64_t>();
  info.recipe = json.at("recipe").get<std::string>();
  info.model_file = json.at("model").at("file").get<std::string>();
  for (const nlohmann::json& setting : json.at("model").at("settings"))
    info.settings.emplace_back(setting.at("name").get<std::string>(), setting.at("value").get<std::string>());
  info.tokenizer_file = json.at("tokenizer").get<std::string>();
  if (info.step < 0 || info.position < 0 || info.batch < 1 || info.seq < 1)
    throw Error("a number in the checkpoint's description is out of range");
  if (!is_plain_file_name(info.model_file) ||
      (!info.tokenizer_file.empty() && !is_plain_file_name(info.tokenizer_file)))
    throw Error("the checkpoint's description names a file outside of it");
  return info;
}

void check_hashes(const fs::path& path, const nlohmann::json& hashes) {
  for (const auto& [name, hash] : hashes.items()) {
    if (!is_plain_file_name(name)) throw Error("the checkpoint's description names a file outside of it");
    if (hash_of(path / name) != hash.get<std::string>())
      throw Error("the file is damaged: its contents are not those that were saved").at({path / name});
  }
}

std::vector<TensorSpec> specs_of(State::Kind kind, const Executor& executor) {
  std::vector<TensorSpec> specs;
  for (const TensorOfState& tensor : tensors_of(executor.plan().states, kind))
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  return specs;
}

std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kMost = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMost); ++i) text += (i == 0 ? "" : ", ") + names[i];
  if (names.size() > kMost) text += concat(" and ", names.size() - kMost, " more");
  return text;
}

void check_names(const SafetensorsFile& file, State::Kind kind, const std::vector<TensorSpec>& specs) {
  std::vector<std::string> missing, extra, known;
  for (const TensorSpec& spec : specs) {
    known.push_back(spec.name);
    if (file.find(spec.name) == nullptr) missing.push_back(spec.name);
  }
  const std::set<std::string> wanted(known.begin(), known.end());
  for (const std::string& name : file.names())
    if (wanted.count(name) == 0) extra.push_back(name);
  if (!missing.empty()) {
    Error error(concat(missing.size() == 1 ? "the tensor " : "tensors ", listed(missing),
                       missing.size() == 1 ? " is missing" : " are missing"));
    if (!extra.empty())
      error.hint(concat("the file has tensors that the model does not: ", listed(extra),
                        "; is it of another model?"));
    throw error.at({file.path()});
  }
  if (!extra.empty())
    throw Error(concat("the model has no ", to_string(kind), extra.size() == 1 ? " " : "s ", listed(extra)))
        .hint(did_you_mean(extra[0], known))
        .at({file.path()});
}

// Of all tensors, so that one run shows every one that does not fit.
void check_shapes(const SafetensorsFile& file, const std::vector<TensorSpec>& specs) {
  constexpr size_t kMost = 5;
  std::optional<Error> first;
  size_t wrong = 0;
  for (const TensorSpec& spec : specs) {
    const TensorView& tensor = file.tensor(spec.name);
    if (tensor.shape == spec.shape || ++wrong > kMost) continue;
    Error error(concat("the tensor ", spec.name, " has shape ", to_string(tensor.shape)));
    error.expected(concat(to_string(spec.shape), ", its shape in the model")).at({file.path()});
    if (first)
      first->also(std::move(error));
    else
      first = std::move(error);
  }
  if (wrong > kMost)
    first->also(Error(concat(wrong - kMost, " more tensors have other shapes than in the model")));
  if (first) throw *first;
}

// What this rank holds of the state.
void load_state(const SafetensorsFile& file, const State& state, Executor& executor) {
  const int64_t size = size_of(state.type.dtype);
  for (const TensorPiece& piece : tensor_pieces(state, executor.plan().module.mesh, executor.rank())) {
    const TensorView& tensor = file.tensor(piece.tensor);
    const std::byte* data = tensor.data + piece.tensor_begin * size_of(tensor.dtype);
    const auto write = [&](const void* values) {
      executor.write_state(state.name, values, piece.state_begin * size, piece.count * size);
    };
    if (tensor.dtype == state.type.dtype) {
      write(data);
    } else if (state.type.dtype == DType::F32 && is_floating(tensor.dtype)) {
      write(as_f32(tensor.dtype, data, piece.count).data());
    } else {
      throw Error(concat("the tensor ", piece.tensor, " has elements of type ", to_string(tensor.dtype)))
          .expected(concat(to_string(state.type.dtype), ", as in the model"))
          .at({file.path()});
    }
  }
}

// What a rank's storage of a state holds from byte `at` on.
void write_chunk(const State& state, const Mesh& mesh, int64_t rank, int64_t at, const std::string& chunk,
                 SafetensorsWriter* writer) {
  const int64_t size = size_of(state.type.dtype), end = at + static_cast<int64_t>(chunk.size());
  for (const TensorPiece& piece : tensor_pieces(state, mesh, rank)) {
    const int64_t first = std::max(at, piece.state_begin * size);
    const int64_t last = std::min(end, (piece.state_begin + piece.count) * size);
    if (first < last)
      writer->write(piece.tensor, chunk.data() + (first - at), static_cast<size_t>(last - first),
                    static_cast<size_t>(piece.tensor_begin * size + first - piece.state_begin * size));
  }
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

}  // namespace

fs::path save_checkpoint(const fs::path& directory, const CheckpointInfo& info,
                         const std::vector<CheckpointFile>& files, const Executor& executor, int64_t keep) {
  const fs::path target = directory / directory_name(info.step);
  try {
    std::error_code failure;
    fs::create_directories(directory, failure);
    if (failure) throw Error("cannot create the directory: " + failure.message()).at({directory});
    AtomicDirectory out(target);
    export_states(out.path() / "model.safetensors", State::kWeight, executor);
    export_states(out.path() / "optimizer.safetensors", State::kOptimizer, executor);
    for (const auto& [name, contents] : files) write_file_atomically(out.path() / name, contents);
    nlohmann::json json = to_json(info);
    nlohmann::json& hashes = json["hashes"] = nlohmann::json::object();
    for (const fs::directory_entry& entry : fs::directory_iterator(out.path()))
      hashes[entry.path().filename().string()] = hash_of(entry.path());
    json["hash"] = hash_of_description(json);
    write_file_atomically(out.path() / kTrainingFile, json.dump(2) + "\n");
    out.commit();
  } catch (const fs::filesystem_error& failure) {
    throw Error(failure.code().message())
        .at({failure.path1().string()})
        .while_doing(concat("saving the checkpoint of step ", info.step));
  } catch (Error& error) {
    throw error.while_doing(concat("saving the checkpoint of step ", info.step));
  } catch (const nlohmann::json::exception&) {
    throw Error("the recipe or a model setting is not UTF-8")
        .while_doing(concat("saving the checkpoint of step ", info.step));
  }
  if (keep > 0) {
    std::vector<std::pair<int64_t, fs::path>> all = list_checkpoints(directory);
    for (size_t i = static_cast<size_t>(keep); i < all.size(); ++i) remove_checkpoint(all[i].second);
  }
  return target;
}

Checkpoint open_checkpoint(const fs::path& path) {
  const fs::path description = path / kTrainingFile;
  try {
    nlohmann::json json = nlohmann::json::parse(read_file(description));
    Checkpoint checkpoint{path, from_json(json)};
    if (json.at("hash").get<std::string>() != hash_of_description(json))
      throw Error("the file is damaged: its contents are not those that were saved").at({description});
    check_hashes(path, json.at("hashes"));
    for (const char* name : {"model.safetensors", "optimizer.safetensors"})
      if (!json.at("hashes").contains(name)) throw Error(concat(name, " is missing"));
    return checkpoint;
  } catch (const nlohmann::json::exception& failure) {
    throw Error(concat("not a checkpoint's description: ", failure.what())).at({description});
  } catch (Error& error) {
    if (!error.location().known()) error.at({description});
    throw error.while_doing(concat("reading the checkpoint ", path.string()));
  }
}

std::optional<Checkpoint> latest_checkpoint(const fs::path& directory,
                                            const std::function<void(const std::string&)>& warn) {
  std::optional<Error> first;
  for (const auto& [step, path] : list_checkpoints(directory)) {
    try {
      return open_checkpoint(path);
    } catch (Error& error) {
      if (warn) warn(concat("passing over a damaged checkpoint: ", error.what()));
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

void restore_checkpoint(const Checkpoint& checkpoint, Executor& executor) {
  load_states(SafetensorsFile(checkpoint.weights()), State::kWeight, executor);
  load_states(SafetensorsFile(checkpoint.optimizer()), State::kOptimizer, executor);
}

void load_states(const SafetensorsFile& file, State::Kind kind, Executor& executor) {
  const std::vector<TensorSpec> specs = specs_of(kind, executor);
  check_names(file, kind, specs);
  check_shapes(file, specs);
  for (const State& state : executor.plan().states)
    if (state.kind == kind) load_state(file, state, executor);
}

void export_states(const fs::path& path, State::Kind kind, const Executor& executor) {
  constexpr int64_t kChunk = int64_t{1} << 20;  // bytes of a rank at a time
  std::optional<SafetensorsWriter> writer;
  if (executor.rank() == 0)
    writer.emplace(path, specs_of(kind, executor), std::map<std::string, std::string>{{"format", "pt"}});
  const Mesh& mesh = executor.plan().module.mesh;
  for (const State& state : executor.plan().states) {
    if (state.kind != kind) continue;
    const int64_t bytes = byte_count(state.type);
    for (int64_t at = 0; at < bytes; at += kChunk) {
      std::string own(static_cast<size_t>(std::min(kChunk, bytes - at)), '\0');
      executor.read_state(state.name, own.data(), at, static_cast<int64_t>(own.size()));
      std::vector<std::string> chunks = {std::move(own)};
      if (!is_replicated(state)) chunks = executor.communicator()->gather_text(chunks[0]);
      for (size_t rank = 0; writer && rank < chunks.size(); ++rank)
        write_chunk(state, mesh, static_cast<int64_t>(rank), at, chunks[rank], &*writer);
    }
  }
  if (writer) writer->commit();
}

}  // namespace kumi
