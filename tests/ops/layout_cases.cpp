#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> layout_cases() {
  return {
      {"reshape", {f32({2, 3, 4})}, {{"shape", list({6, 4})}}},
      {"reshape", {f32({24})}, {{"shape", list({2, -1, 4})}}},
      {"reshape", {f32({1, 1})}, {{"shape", list({})}}},
      {"reshape", {f32({})}, {{"shape", list({1, 1, 1})}}},
      {"reshape", {i32({5, 3})}, {{"shape", list({3, 5})}}},
      {"reshape", {bf16({5, 3})}, {{"shape", list({-1})}}},

      {"transpose", {f32({})}, {{"axes", list({})}}},
      {"transpose", {f32({7})}, {{"axes", list({0})}}},
      {"transpose", {f32({37, 19})}, {{"axes", list({1, 0})}}},
      {"transpose", {f32({37, 19})}, {{"axes", list({0, 1})}}},
      {"transpose", {f32({1, 19})}, {{"axes", list({-1, 0})}}},
      {"transpose", {f32({2, 5, 3, 7})}, {{"axes", list({0, 2, 1, 3})}}},
      {"transpose", {f32({2, 5, 3, 7})}, {{"axes", list({3, 1, 0, 2})}}},
      {"transpose", {f32({2, 1, 3, 1})}, {{"axes", list({-2, -1, -4, -3})}}},
      {"transpose", {f32({150, 210})}, {{"axes", list({1, 0})}}},
      {"transpose", {bf16({3, 5, 4})}, {{"axes", list({2, 0, 1})}}},
      {"transpose", {i32({3, 5})}, {{"axes", list({1, 0})}}},

      {"slice", {f32({7})}, {{"axis", Dim(0)}, {"begin", Dim(2)}, {"end", Dim(6)}}},
      {"slice", {f32({7})}, {{"axis", Dim(0)}, {"end", Dim(7)}}},
      {"slice", {f32({5, 3})}, {{"axis", Dim(0)}, {"begin", Dim(4)}, {"end", Dim(5)}}},
      {"slice", {f32({5, 43})}, {{"axis", Dim(-1)}, {"begin", Dim(3)}, {"end", Dim(40)}}},
      {"slice", {f32({2, 5, 3, 4})}, {{"axis", Dim(1)}, {"begin", Dim(1)}, {"end", Dim(3)}}},
      {"slice", {bf16({4, 6})}, {{"axis", Dim(1)}, {"begin", Dim(3)}, {"end", Dim(6)}}},
      {"slice", {i32({4, 6})}, {{"axis", Dim(-2)}, {"begin", Dim(1)}, {"end", Dim(3)}}},

      {"pad", {f32({4})}, {{"axis", Dim(0)}, {"before", Dim(2)}, {"after", Dim(3)}}},
      {"pad", {f32({4})}, {{"axis", Dim(0)}}},
      {"pad", {f32({1, 3})}, {{"axis", Dim(0)}, {"after", Dim(2)}}},
      {"pad", {f32({5, 37})}, {{"axis", Dim(-1)}, {"before", Dim(3)}}},
      {"pad", {f32({2, 3, 2, 4})}, {{"axis", Dim(1)}, {"before", Dim(1)}, {"after", Dim(2)}}},
      {"pad", {bf16({4, 6})}, {{"axis", Dim(1)}, {"before", Dim(1)}}},
      {"pad", {i32({4, 6})}, {{"axis", Dim(0)}, {"before", Dim(1)}}},

      {"split", {f32({5})}, {{"axis", Dim(0)}, {"sizes", list({5})}}},
      {"split", {f32({9, 3})}, {{"axis", Dim(0)}, {"sizes", list({2, 4, 3})}}},
      {"split", {f32({3, 35})}, {{"axis", Dim(-1)}, {"sizes", list({20, 1, 14})}}},
      {"split", {f32({2, 6, 3, 4})}, {{"axis", Dim(1)}, {"sizes", list({1, 3, 2})}}},
      {"split", {i32({2, 6})}, {{"axis", Dim(1)}, {"sizes", list({4, 2})}}},
      {"split", {bf16({3, 35})}, {{"axis", Dim(-1)}, {"sizes", list({20, 1, 14})}}},
      {"split", {bf16({9, 3})}, {{"axis", Dim(0)}, {"sizes", list({2, 4, 3})}}},
      {"concat", {f32({5})}, {{"axis", Dim(0)}}},
      {"concat", {f32({5}), f32({1}), f32({3})}, {{"axis", Dim(-1)}}},
      {"concat", {f32({2, 17}), f32({3, 17})}, {{"axis", Dim(0)}}},
      {"concat", {f32({3, 20}), f32({3, 15})}, {{"axis", Dim(1)}}},
      {"concat", {f32({2, 1, 3, 4}), f32({2, 3, 3, 4}), f32({2, 2, 3, 4})}, {{"axis", Dim(-3)}}},
      {"concat", {bf16({2, 3}), bf16({2, 2})}, {{"axis", Dim(1)}}},
      {"concat", {bf16({2, 2, 3}), bf16({1, 2, 3}), bf16({2, 2, 3})}, {{"axis", Dim(0)}}},
      {"concat", {i32({2}), i32({2})}, {{"axis", Dim(0)}}},

      {"broadcast", {f32({})}, {{"shape", list({})}}},
      {"broadcast", {f32({})}, {{"shape", list({3, 17})}}},
      {"broadcast", {f32({17})}, {{"shape", list({3, 17})}}},
      {"broadcast", {f32({3, 1})}, {{"shape", list({3, 17})}}},
      {"broadcast", {f32({1, 5, 1})}, {{"shape", list({2, 3, 5, 4})}}},
      {"broadcast", {f32({2, 1, 1, 4})}, {{"shape", list({2, 3, 5, 4})}}},
      {"broadcast", {f32({1, 1})}, {{"shape", list({1, 1})}}},
      {"broadcast", {bf16({1, 7})}, {{"shape", list({3, 7})}}},
      {"broadcast", {bools({3, 1})}, {{"shape", list({3, 7})}}},
  };
}

}  // namespace kumi::testing
