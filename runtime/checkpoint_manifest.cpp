#include "runtime/checkpoint_manifest.h"

#include <xxhash.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr int kFormat = 2, kFormatWithoutTensors = 1;
constexpr char kWeights[] = "weight", kOptimizer[] = "optimizer";

// Of all that the description says but this.
std::string hash_of_description(nlohmann::json json) {
  json.erase("hash");
  const std::string text = json.dump();
  return hash_text(XXH3_64bits(text.data(), text.size()));
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

CheckpointInfo parse_info(const nlohmann::json& json) {
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

nlohmann::json to_json(const std::vector<StoredTensor>& tensors) {
  nlohmann::json list = nlohmann::json::array();
  for (const StoredTensor& tensor : tensors) {
    nlohmann::json pieces = nlohmann::json::array();
    for (const StoredPiece& piece : tensor.pieces)
      pieces.push_back(nlohmann::json::array({piece.file, piece.begin, piece.count}));
    list.push_back({{"name", tensor.name},
                    {"dtype", to_string(tensor.dtype)},
                    {"shape", tensor.shape},
                    {"pieces", pieces}});
  }
  return list;
}

std::vector<StoredTensor> parse_tensors(const nlohmann::json& json,
                                        const std::map<std::string, std::string>& hashes) {
  std::vector<StoredTensor> tensors;
  for (const nlohmann::json& entry : json) {
    StoredTensor& tensor = tensors.emplace_back();
    tensor.name = entry.at("name").get<std::string>();
    const std::optional<DType> dtype = parse_dtype(entry.at("dtype").get<std::string>());
    if (!dtype) throw Error(concat("the type of the tensor ", tensor.name, " is not known"));
    tensor.dtype = *dtype;
    tensor.shape = entry.at("shape").get<std::vector<int64_t>>();
    for (const nlohmann::json& piece : entry.at("pieces")) {
      tensor.pieces.push_back(
          {piece.at(0).get<std::string>(), piece.at(1).get<int64_t>(), piece.at(2).get<int64_t>()});
      if (hashes.count(tensor.pieces.back().file) == 0)
        throw Error(concat("the tensor ", tensor.name, " is in the file ", quoted(tensor.pieces.back().file),
                           ", of which there is no hash"));
    }
  }
  return tensors;
}

}  // namespace

std::string hash_text(uint64_t hash) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::string manifest_text(const CheckpointManifest& manifest) {
  try {
    nlohmann::json json = to_json(manifest.info);
    json["ranks"] = manifest.ranks;
    json["hashes"] = manifest.hashes;
    json["tensors"] = {{kWeights, to_json(manifest.weights)}, {kOptimizer, to_json(manifest.optimizer)}};
    json["hash"] = hash_of_description(json);
    return json.dump(2) + "\n";
  } catch (const nlohmann::json::exception&) {
    throw Error("the recipe, a model setting or a tensor's name is not UTF-8");
  }
}

CheckpointManifest parse_manifest(const std::string& text) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    const int format = json.at("format").get<int>();
    if (format != kFormat && format != kFormatWithoutTensors)
      throw Error(concat("the checkpoint has format ", format))
          .expected(
              concat("format ", kFormatWithoutTensors, " or ", kFormat, ", what this version of kumi reads"));
    CheckpointManifest manifest;
    manifest.info = parse_info(json);
    if (json.at("hash").get<std::string>() != hash_of_description(json))
      throw Error("the file is damaged: its contents are not those that were saved");
    for (const auto& [name, hash] : json.at("hashes").items()) {
      if (!is_plain_file_name(name)) throw Error("the checkpoint's description names a file outside of it");
      manifest.hashes.emplace(name, hash.get<std::string>());
    }
    manifest.has_tensors = format != kFormatWithoutTensors;
    if (!manifest.has_tensors) return manifest;
    manifest.ranks = json.at("ranks").get<int64_t>();
    if (manifest.ranks < 1) throw Error("a number in the checkpoint's description is out of range");
    manifest.weights = parse_tensors(json.at("tensors").at(kWeights), manifest.hashes);
    manifest.optimizer = parse_tensors(json.at("tensors").at(kOptimizer), manifest.hashes);
    return manifest;
  } catch (const nlohmann::json::exception& failure) {
    throw Error(concat("not a checkpoint's description: ", failure.what()));
  }
}

}  // namespace kumi
