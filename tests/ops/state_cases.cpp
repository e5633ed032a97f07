#include "tests/ops/op_cases.h"

namespace kumi::testing {

// Of this family only `constant` computes anything; the others are in state_op_test.cpp.
std::vector<OpCase> state_cases() {
  return {
      {"constant", {}, {{"value", 0.1}}},
      {"constant", {}, {{"value", -2.5}, {"shape", list({37})}}},
      {"constant", {}, {{"value", 0.1}, {"dtype", DType::F64}, {"shape", list({3, 5})}}},
      {"constant", {}, {{"value", 0.1}, {"dtype", DType::BF16}, {"shape", list({3})}}},
      {"constant", {}, {{"value", 0.1}, {"dtype", DType::F16}, {"shape", list({3})}}},
      {"constant", {}, {{"value", -7.0}, {"dtype", DType::I32}, {"shape", list({2, 1, 3})}}},
      {"constant", {}, {{"value", 9007199254740991.0}, {"dtype", DType::I64}, {"shape", list({3})}}},
      {"constant", {}, {{"value", 255.0}, {"dtype", DType::U8}, {"shape", list({3})}}},
      {"constant", {}, {{"value", 1.0}, {"dtype", DType::BOOL}, {"shape", list({3})}}},
  };
}

}  // namespace kumi::testing
