#include "graph/quantized.h"

namespace kumi {

std::vector<double> code_table(const std::string& code_book) {
  // QLoRA, appendix E.
  if (code_book == "nf4")
    return {-1.0,
            -0.6961928009986877,
            -0.5250730514526367,
            -0.39491748809814453,
            -0.28444138169288635,
            -0.18477343022823334,
            -0.09105003625154495,
            0.0,
            0.07958029955625534,
            0.16093020141124725,
            0.24611230194568634,
            0.33791524171829224,
            0.44070982933044434,
            0.5626170039176941,
            0.7229568362236023,
            1.0};
  const int steps = code_book == "int4" ? 14 : 254;
  std::vector<double> table;
  for (int code = 0; code <= steps; ++code) table.push_back(2.0 * code / steps - 1);
  return table;
}

int bits_of(const std::string& code_book) {
  return code_book == "int8" ? 8 : 4;
}

bool is_uniform(const std::string& code_book) {
  return code_book != "nf4";
}

std::vector<std::string> code_book_names() {
  return {"nf4", "int4", "int8"};
}

QuantizationScheme quantization_scheme(const std::string& name) {
  if (name == "int8") return {"int8", 256, false};
  if (name == "int4" || name == "nf4") return {name, 64, true};
  throw Error(concat("there is no quantization ", quoted(name)))
      .expected("one of " + joined(code_book_names()))
      .hint(did_you_mean(name, code_book_names()));
}

std::vector<ValueId> quantized(GraphBuilder& builder, ValueId x, const QuantizationScheme& scheme) {
  const std::vector<ValueId> parts =
      builder.build("quantize", {x}, {{"code_book", scheme.code_book}, {"block", Dim(scheme.block)}});
  if (!scheme.is_double) return parts;
  const ValueId mean = builder.call("mean", {parts[1]}, {{"axes", Shape{-1}}, {"keep_axes", true}});
  const std::vector<ValueId> scales =
      builder.build("quantize", {builder.subtract(parts[1], mean)},
                    {{"code_book", std::string("int8")}, {"block", Dim(scheme.scale_block)}});
  return {parts[0], scales[0], scales[1], mean};
}

ValueId dequantized(GraphBuilder& builder, const std::vector<ValueId>& parts,
                    const QuantizationScheme& scheme, int64_t size, DType dtype) {
  const size_t expected = scheme.is_double ? 4 : 2;
  if (parts.size() != expected)
    throw Error(concat("values quantized to ", scheme.code_book, " are given as ", parts.size(), " parts"))
        .expected(concat(expected, " parts, as quantized() makes them"));
  ValueId scales = parts[1];
  if (scheme.is_double) {
    const int64_t blocks = (size + scheme.block - 1) / scheme.block;
    scales = builder.call("dequantize", {parts[1], parts[2]},
                          {{"code_book", std::string("int8")},
                           {"block", Dim(scheme.scale_block)},
                           {"size", Dim(blocks)},
                           {"dtype", DType::F32}});
    scales = builder.add(scales, parts[3]);
  }
  return builder.call(
      "dequantize", {parts[0], scales},
      {{"code_book", scheme.code_book}, {"block", Dim(scheme.block)}, {"size", Dim(size)}, {"dtype", dtype}});
}

}  // namespace kumi
