#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> embedding_cases() {
  auto rows = [](int64_t count) { return Attributes{{"rows", Dim(count)}}; };
  std::vector<OpCase> cases = {
      {"embedding", {indices({}, 3), f32({3, 5})}},
      {"embedding", {indices({4}, 1), f32({1, 1})}},
      {"embedding", {indices({7}, 11), f32({11, 37})}},
      {"embedding", {indices({2, 3}, 11), f32({11, 6})}},
      {"embedding", {indices({2, 1, 3}, 11), f32({11, 6})}},
      {"embedding", {indices({40, 50}, 100), f32({100, 33})}},
      {"embedding", {indices({7}, 11), bf16({11, 9})}},

      {"embedding_grad", {indices({}, 3), f32({5})}, rows(3)},
      {"embedding_grad", {indices({4}, 1), f32({4, 1})}, rows(1)},
      {"embedding_grad", {indices({7}, 11), f32({7, 37})}, rows(11)},
      {"embedding_grad", {indices({2, 3}, 11), f32({2, 3, 64})}, rows(12)},
      {"embedding_grad", {indices({40, 50}, 100), f32({40, 50, 33})}, rows(100)},
      {"embedding_grad", {indices({30}, 1000), bf16({30, 9})}, rows(1000), 5},
  };
  for (OpCase& one : cases)
    if (one.op == "embedding_grad") one.scratch = {1, 2, 3};
  return cases;
}

}  // namespace kumi::testing
