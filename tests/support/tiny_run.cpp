#include "tests/support/tiny_run.h"

#include <cstdint>

namespace kumi::testing {

namespace fs = std::filesystem;

std::string tiny_text() {
  static constexpr const char* kSyllables[] = {"ka", "no", "the", "gra", "ph", "mo", "del", "計", "算", "。"};
  // A generator of its own, so that the text is the same with every library.
  uint64_t state = 12345;
  const auto random = [&state](uint64_t below) {
    state = state * 6364136223846793005 + 1442695040888963407;
    return (state >> 33) % below;
  };
  std::string text;
  for (int line = 0; line < 1500; ++line) {
    if (line % 6 == 5) text += "\n";
    for (uint64_t words = 4 + random(5); words > 0; --words) {
      for (uint64_t syllables = 1 + random(3); syllables > 0; --syllables)
        text += kSyllables[random(std::size(kSyllables))];
      text += words == 1 ? "\n" : " ";
    }
  }
  return text;
}

fs::path write_tiny_recipe(const TemporaryFolder& folder) {
  folder.write("text.txt", tiny_text());
  return folder.write("recipe.txtpb", R"(
model {
  path: ")" + std::string(KUMI_SOURCE_DIR) +
                                          R"(/models/plamo.kumi"
  set { name: "vocab" value: "320" }
  set { name: "hidden" value: "16" }
  set { name: "layers" value: "1" }
  set { name: "heads" value: "2" }
  set { name: "kv_heads" value: "1" }
  set { name: "ffn" value: "24" }
}
data {
  sources { name: "made-up" path: "text.txt" }
  sequence_length: 16
  batch_size: 2
}
optimizer { learning_rate: 1e-2 warmup_steps: 5 decay_steps: 40 }
steps: 40
accumulation: 2
seed: 7
output: "run"
checkpoint { every: 2 keep: 3 }
)");
}

}  // namespace kumi::testing
