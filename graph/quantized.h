// Values quantized block by block, with the scales quantized once more: what passes build of the ops quantize
// and dequantize (ops/quantization.cpp).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/builder.h"

namespace kumi {

// The values that codes stand for, ascending, in [-1, 1].
std::vector<double> code_table(const std::string& code_book);
int bits_of(const std::string& code_book);
bool is_uniform(const std::string& code_book);  // equal steps
std::vector<std::string> code_book_names();     // "nf4", "int4", "int8"

struct QuantizationScheme {
  std::string code_book;
  int64_t block = 64;
  // Scales less their mean are quantized to 8 bits in blocks of `scale_block` (QLoRA, section 3).
  bool is_double = false;
  int64_t scale_block = 256;
};

// "int8": 256 a block, f32 scales. "int4", "nf4": 64 a block, doubly quantized: 4.127 bits a value. Throws
// Error for another name.
QuantizationScheme quantization_scheme(const std::string& name);

// x: [..., n], each row by itself. What is to be stored or sent: codes and scales, or codes, codes of the
// scales, their scales, and the mean [..., 1]. Values again are off by half a step of the code book, relative
// to the largest of their block, and, doubly quantized, by up to 1/254 of how far a scale is from the mean of
// all: a block far below the others may lose its sign. Where the scales of a row add up beyond f32, nothing
// of it is finite.
std::vector<ValueId> quantized(GraphBuilder& builder, ValueId x, const QuantizationScheme& scheme);
// The values again, [..., size] of `dtype`. Throws Error for parts of another scheme.
ValueId dequantized(GraphBuilder& builder, const std::vector<ValueId>& parts,
                    const QuantizationScheme& scheme, int64_t size, DType dtype);

}  // namespace kumi
