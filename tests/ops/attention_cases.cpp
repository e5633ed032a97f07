#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> attention_cases() {
  struct Line {
    int64_t batch, heads, kv_heads, seq, head_dim;
    bool causal;
    const char* groups;
    double scale;
  };
  const Line kLines[] = {
      {1, 1, 1, 1, 1, true, "grouped", 0},
      {1, 1, 1, 1, 4, false, "grouped", 0},
      {1, 2, 2, 5, 3, true, "grouped", 0},
      {2, 2, 1, 7, 4, false, "tiled", 0.3},
      {1, 4, 2, 9, 8, true, "grouped", 0},
      {1, 4, 2, 9, 8, true, "tiled", 0},
      {1, 6, 3, 16, 16, false, "grouped", 0},
      {1, 6, 2, 17, 16, true, "tiled", 0.7},
      {2, 2, 2, 64, 8, true, "grouped", 0},
      {1, 2, 1, 65, 8, true, "grouped", 0},
      {1, 2, 1, 65, 8, false, "tiled", 0},
      {1, 1, 1, 130, 20, true, "grouped", 0},
      {1, 3, 1, 67, 32, false, "grouped", 0},
      {1, 2, 2, 33, 128, true, "grouped", 0},
      // Several tiles of a GPU's tensor cores, with and without a rest; heads divided into parts, or not.
      {1, 4, 1, 130, 16, true, "tiled", 0},
      {1, 2, 1, 200, 64, true, "grouped", 0},
      {1, 8, 2, 96, 32, true, "tiled", 0.2},
      {2, 2, 1, 77, 48, false, "tiled", 0},
      {1, 2, 2, 128, 64, false, "grouped", 0},
      {1, 4, 1, 161, 128, true, "tiled", 0},
  };
  std::vector<OpCase> cases;
  uint32_t seed = 1;
  for (const DType dtype : {DType::F32, DType::BF16})
    for (const Line& l : kLines) {
      TestOperand q = tensor(dtype, {l.batch, l.heads, l.seq, l.head_dim}),
                  k = tensor(dtype, {l.batch, l.kv_heads, l.seq, l.head_dim});
      Attributes attributes = {{"causal", l.causal}, {"groups", std::string(l.groups)}, {"scale", l.scale}};
      if (seed % 3 == 0) {  // the other order of axes
        attributes.emplace_back("layout", std::string("bshd"));
        q = tensor(dtype, {l.batch, l.seq, l.heads, l.head_dim});
        k = tensor(dtype, {l.batch, l.seq, l.kv_heads, l.head_dim});
      }
      // The log-sum-exp has no gradient.
      cases.push_back({"attention", {q, k, k}, attributes, ++seed, {0}});
      cases.push_back({"attention_grad",
                       {q, k, k, result_of("attention", 0), result_of("attention", 1), q},
                       attributes,
                       ++seed,
                       {0, 1, 2},
                       {3, 4}});
    }
  return cases;
}

}  // namespace kumi::testing
