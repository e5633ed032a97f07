// A tiny training run on generated text: seconds from text to trained weights.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.h"

namespace kumi::testing {

// Some thousand lines of made-up words, the same every time.
std::string tiny_text();

// Writes text.txt and recipe.txtpb (model plamo.kumi of one layer, 40 steps, a checkpoint every 2, output
// `run`) into the folder; returns the recipe's path.
std::filesystem::path write_tiny_recipe(const TemporaryFolder& folder);

}  // namespace kumi::testing
