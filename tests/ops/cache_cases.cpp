#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> cache_cases() {
  std::vector<OpCase> cases;
  uint32_t seed = 1;

  struct Slice {
    Sizes shape;
    int64_t axis, size;
  };
  const Slice kSlices[] = {{{1}, 0, 1},      {{9}, 0, 4},        {{16, 8}, 0, 1},
                           {{16, 8}, 0, 7},  {{3, 12, 5}, 1, 1}, {{3, 12, 5}, -2, 6},
                           {{4, 10}, -1, 3}, {{5, 6}, 0, 5},     {{2, 3, 20, 4}, 2, 11}};
  for (const Slice& s : kSlices) {
    const auto rank = static_cast<int64_t>(s.shape.size());
    const int64_t size = s.shape[s.axis < 0 ? s.axis + rank : s.axis];
    cases.push_back({"dynamic_slice",
                     {f32(s.shape), indices({}, size - s.size + 1)},
                     {{"axis", Dim(s.axis)}, {"size", Dim(s.size)}},
                     ++seed});
  }
  cases.push_back({"dynamic_slice", {bf16({7, 3}), indices({}, 5)}, {{"size", Dim(3)}}, ++seed});
  cases.push_back({"dynamic_slice", {i32({7}), indices({}, 7)}, {{"size", Dim(1)}}, ++seed});

  struct Update {
    Sizes cache, piece;
    int64_t axis;
  };
  const Update kUpdates[] = {
      {{1, 1, 1, 1}, {1, 1, 1, 1}, -2},
      {{1, 2, 16, 8}, {1, 2, 1, 8}, -2},
      {{2, 3, 17, 5}, {2, 3, 6, 5}, 2},
      {{9}, {4}, 0},
      {{4, 6}, {4, 6}, 0},
      {{3, 10}, {3, 7}, -1},
  };
  for (const Update& u : kUpdates) {
    const auto rank = static_cast<int64_t>(u.cache.size());
    const auto axis = static_cast<size_t>(u.axis < 0 ? u.axis + rank : u.axis);
    cases.push_back({"cache_update",
                     {f32(u.cache), f32(u.piece), indices({}, u.cache[axis] - u.piece[axis] + 1)},
                     {{"axis", Dim(u.axis)}},
                     ++seed});
  }
  cases.push_back({"cache_update", {bf16({2, 5, 3}), bf16({2, 2, 3}), indices({}, 4)}, {}, ++seed});

  struct Attention {
    int64_t batch, heads, kv_heads, seq, capacity, head_dim;
    const char* groups;
    double scale;
    // Positions are drawn from [0, limit); 0 for all that there are.
    int64_t limit = 0;
  };
  const Attention kAttentions[] = {
      // One query.
      {1, 1, 1, 1, 1, 1, "grouped", 0},
      {1, 1, 1, 1, 5, 4, "grouped", 0, 1},
      {1, 2, 2, 1, 9, 3, "grouped", 0},
      {2, 4, 2, 1, 64, 8, "tiled", 0.3},
      {1, 8, 1, 1, 65, 16, "grouped", 0},
      {1, 6, 2, 1, 200, 20, "tiled", 0},
      {1, 6, 3, 1, 300, 64, "grouped", 0},
      {1, 2, 2, 1, 1000, 128, "grouped", 0},
      // Chunks.
      {1, 1, 1, 2, 2, 1, "grouped", 0},
      {1, 2, 2, 3, 7, 4, "grouped", 0, 1},
      {2, 4, 2, 7, 12, 8, "tiled", 0.3},
      {1, 4, 2, 5, 70, 8, "grouped", 0},
      {1, 2, 1, 33, 40, 16, "grouped", 0},
      {1, 6, 2, 32, 131, 20, "tiled", 0},
      {1, 2, 2, 64, 64, 8, "grouped", 0},
      {1, 2, 1, 65, 300, 32, "grouped", 0},
  };
  for (const Attention& a : kAttentions) {
    const int64_t limit = a.limit > 0 ? a.limit : a.capacity - a.seq + 1;
    const TestOperand kept = f32({a.batch, a.kv_heads, a.capacity, a.head_dim});
    const Attributes attributes = {{"groups", std::string(a.groups)}, {"scale", a.scale}};
    for (int repeat = 0; repeat < (limit > 1 ? 2 : 1); ++repeat)
      cases.push_back({"attention_cached",
                       {f32({a.batch, a.heads, a.seq, a.head_dim}), kept, kept, indices({}, limit)},
                       attributes,
                       ++seed});
  }
  return cases;
}

}  // namespace kumi::testing
