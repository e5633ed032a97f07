#include "tests/ops/op_cases.h"

namespace kumi::testing {

std::vector<OpCase> quantization_cases() {
  std::vector<OpCase> cases;
  for (const char* code_book : {"nf4", "int4", "int8"})
    // Whole blocks, a last block that is not, rows of odd length, one element, several rows.
    for (const Sizes& shape :
         {Sizes{128}, Sizes{4096}, Sizes{100}, Sizes{33}, Sizes{1}, Sizes{3, 70}, Sizes{2, 3, 65}}) {
      const Attributes attributes = {{"code_book", std::string(code_book)}, {"block", Dim(32)}};
      cases.push_back({"quantize", {f32(shape)}, attributes});
      Attributes back = attributes;
      back.emplace_back("size", Dim(shape.back()));
      const bool is_packed = std::string(code_book) != "int8";
      Sizes codes = shape, scales = shape;
      if (is_packed) codes.back() = (shape.back() + 1) / 2;
      scales.back() = (shape.back() + 31) / 32;
      TestOperand bytes = indices(codes, 256);
      bytes.dtype = DType::U8;
      cases.push_back({"dequantize", {bytes, positive(scales)}, back});
      back.emplace_back("dtype", DType::BF16);
      cases.push_back({"dequantize", {bytes, positive(scales)}, back});
    }
  cases.push_back({"quantize", {bf16({2, 96})}, {{"code_book", std::string("nf4")}, {"block", Dim(64)}}});
  return cases;
}

}  // namespace kumi::testing
