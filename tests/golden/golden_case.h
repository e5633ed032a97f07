// A golden run: its files, and `kumi train` over its recorded batches.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/atomic_file.h"
#include "tests/support/json_lines.h"
#include "tests/support/run_command.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"

namespace kumi::testing {

inline std::filesystem::path golden_folder() {
  if (const char* folder = std::getenv("KUMI_GOLDEN_DIR"); folder != nullptr && *folder != '\0')
    return folder;
  return std::filesystem::path(KUMI_SOURCE_DIR) / ".." / "shared" / "golden";
}

class GoldenRun {
 public:
  explicit GoldenRun(const std::string& name) : case_(golden_folder() / name) {
    if (std::filesystem::exists(case_ / "case.json"))
      json_ = nlohmann::json::parse(read_file(case_ / "case.json"));
  }

  bool exists() const { return !json_.is_null(); }
  std::string missing() const {
    return "there is no golden run " + case_.string() + "; set KUMI_GOLDEN_DIR to their folder";
  }
  const nlohmann::json& json() const { return json_; }
  int steps() const { return json_.at("steps"); }
  std::filesystem::path file(const std::string& name) const { return case_ / (name + ".safetensors"); }
  std::filesystem::path model() const {
    return std::filesystem::path(KUMI_SOURCE_DIR) / "models" /
           (json_.at("config").at("arch").get<std::string>() + ".kumi");
  }
  std::filesystem::path folder() const { return folder_.path(); }
  std::filesystem::path exported() const { return folder_ / "after.safetensors"; }

  // `--set model.NAME=VALUE` of every entry of "config" that describes the model and not its data.
  std::vector<std::string> model_settings() const {
    std::vector<std::string> arguments;
    for (const auto& [name, value] : json_.at("config").items()) {
      const bool is_about_data =
          name == "arch" || name == "batch" || name == "seq" || name == "seed" || name == "masked";
      if (is_about_data) continue;
      arguments.insert(arguments.end(), {"--set", "model." + name + "=" + value.dump()});
    }
    return arguments;
  }

  // Of `kumi train` of all steps.
  std::vector<std::string> train_arguments(const std::vector<std::string>& more_settings) const {
    std::vector<std::string> arguments = {"train", std::string(KUMI_SOURCE_DIR) + "/models/replay.txtpb",
                                          "--model", model().string()};
    const auto add = [&](const std::vector<std::string>& more) {
      arguments.insert(arguments.end(), more.begin(), more.end());
    };
    add(model_settings());
    for (const auto& [name, value] : json_.at("optimizer").items())
      add({"--set", "optimizer." + (name == "lr" ? "learning_rate" : name) + "=" + value.dump()});
    add({"--set", "init_from=" + file("weights").string()});
    add({"--set", "data.batches=" + file("batches").string()});
    add({"--log", (folder_ / "log.jsonl").string()});
    add({"--export", exported().string()});
    add(more_settings);
    return arguments;
  }

  // Runs it: what its log tells of each step. The trained weights are in exported().
  std::vector<nlohmann::json> train(const std::vector<std::string>& more_settings) const {
    const CommandResult result = run_kumi(train_arguments(more_settings));
    EXPECT_EQ(result.status, 0) << result.description();
    return result.status == 0 ? read_steps(folder_ / "log.jsonl") : std::vector<nlohmann::json>();
  }

  // Each of them by the norm of its difference over its norm.
  void expect_trained_weights(double tolerance) const {
    const NamedTensors found = read_tensors(exported());
    size_t compared = 0;
    for (const auto& [name, tensor] : read_tensors(file("expected"))) {
      if (!name.starts_with("after.")) continue;
      const std::string weight = name.substr(6);
      ASSERT_TRUE(found.contains(weight)) << weight;
      EXPECT_LE(relative_distance(found.at(weight), tensor), tolerance) << weight;
      ++compared;
    }
    EXPECT_GT(compared, 0u);
    EXPECT_EQ(found.size(), compared);
  }

 private:
  std::filesystem::path case_;
  nlohmann::json json_;
  TemporaryFolder folder_;
};

}  // namespace kumi::testing
