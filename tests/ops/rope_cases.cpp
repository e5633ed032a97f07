#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> rope_cases() {
  return {
      {"rope", {f32({1, 2})}},
      {"rope", {f32({5, 2})}, {{"inverse", true}}},
      {"rope", {f32({7, 6})}},
      {"rope", {f32({2, 9, 34})}, {{"base", 100.0}}},
      {"rope", {f32({2, 3, 5, 8})}},
      {"rope", {f32({2, 3, 5, 8})}, {{"inverse", true}, {"base", 500000.0}}},
      {"rope", {f32({3, 300, 64})}},
      {"rope", {bf16({2, 5, 8})}},
      {"rope", {f32({2, 5, 3, 8})}, {{"axis", Dim(1)}}},
      {"rope", {bf16({2, 5, 3, 8})}, {{"axis", Dim(1)}}},
      {"rope", {bf16({7, 2, 34})}, {{"axis", Dim(0)}, {"inverse", true}}},
      {"rope", {f32({7, 2, 6})}, {{"axis", Dim(-3)}, {"inverse", true}}},
      {"rope", {f32({2, 3, 5, 8}), indices({}, 4000)}},
      {"rope", {f32({4, 1, 64}), indices({}, 4000)}, {{"inverse", true}}},
  };
}

}  // namespace kumi::testing
