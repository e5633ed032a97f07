// Block-wise quantization (Dettmers et al. 2023, QLoRA, arXiv:2305.14314): runs of `block` elements of the
// last axis share a scale, their largest magnitude; an element is the code of the value of a table that is
// nearest to element / scale. Double quantization is this twice, the second time of the scales
// (graph/quantized.h).
#include <algorithm>
#include <cmath>

#include "codegen/kernel_builder.h"
#include "codegen/kernel_lowering.h"
#include "graph/op.h"
#include "graph/quantized.h"
#include "ops/families.h"

namespace kumi {
namespace {

// What is done to one row of the last axis.
struct Rows {
  int64_t rows = 1, size = 0, block = 1, blocks = 0;
  bool is_packed = false;  // two codes a byte
  int64_t bytes = 0;       // of the codes of a row

  Rows(const Shape& shape, const Attributes& attributes)
      : size(shape.back().number()),
        block(int_attribute(attributes, "block")),
        blocks((size + block - 1) / block),
        is_packed(bits_of(string_attribute(attributes, "code_book")) == 4),
        bytes(is_packed ? (size + 1) / 2 : size) {
    for (size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis].number();
  }
};

void check_row(const InferContext& context, const Type& x) {
  if (x.rank() == 0 || !x.shape.back().is_number())
    context.fail(concat("the last axis of ", display(x), " is not known"));
  const Dim block = std::get<Dim>(*find_attribute(context.attributes, "block"));
  if (!block.is_number() || block.number() < 2 || block.number() % 2 != 0 || block.number() > (1 << 20))
    context.fail("'block' is not an even number from 2 to 2^20");
}

std::vector<Type> infer_quantize(const InferContext& context) {
  context.require_floating(0);
  const Type& x = context.operand(0);
  check_row(context, x);
  const int64_t size = x.shape.back().number();
  const int64_t block = int_attribute(context.attributes, "block");
  Type codes{DType::U8, x.shape}, scales{DType::F32, x.shape};
  if (bits_of(string_attribute(context.attributes, "code_book")) == 4) codes.shape.back() = (size + 1) / 2;
  scales.shape.back() = (size + block - 1) / block;
  return {codes, scales};
}

std::vector<Type> infer_dequantize(const InferContext& context) {
  context.require_dtype(0, DType::U8);
  context.require_dtype(1, DType::F32);
  check_row(context, context.operand(0));
  const Dim size = std::get<Dim>(*find_attribute(context.attributes, "size"));
  if (!size.is_number() || size.number() < 0) context.fail("'size' is not a number of 0 or more");
  const DType dtype = dtype_attribute(context.attributes, "dtype");
  if (dtype != DType::F32 && dtype != DType::BF16) context.fail("'dtype' is neither f32 nor bf16");
  Type x{dtype, context.operand(0).shape};
  x.shape.back() = size;
  const int64_t block = int_attribute(context.attributes, "block");
  Shape codes = x.shape, scales = x.shape;
  if (bits_of(string_attribute(context.attributes, "code_book")) == 4) codes.back() = (size.number() + 1) / 2;
  scales.back() = (size.number() + block - 1) / block;
  if (context.operand(0).shape != codes || context.operand(1).shape != scales)
    context.fail(concat("codes and scales of ", display(x), " are ", display(codes), " and ", display(scales),
                        ", not ", display(context.operand(0).shape), " and ",
                        display(context.operand(1).shape)));
  return {x};
}

// ---- reference

// To f32: what is greater in f32 is greater than x itself.
double rounded_down(double x) {
  const auto nearest = static_cast<float>(x);
  return nearest > x ? std::nextafter(nearest, -HUGE_VALF) : nearest;
}

// Between the values of a table of 4 bits: what is above boundary c has a code above c.
std::vector<double> boundaries_of(const std::string& code_book) {
  const std::vector<double> table = code_table(code_book);
  const auto top = static_cast<double>(table.size() - 1);
  std::vector<double> boundaries;
  for (size_t c = 1; c < table.size(); ++c)
    boundaries.push_back(rounded_down(is_uniform(code_book) ? static_cast<double>(2 * c - 1) / top - 1
                                                            : (table[c - 1] + table[c]) / 2));
  return boundaries;
}

// Of a value in [-1, 1]; the lower one of two equally near, which is a matter of the last bit: as the kernels
// compute it, in f32.
int64_t nearest(const std::string& code_book, float value) {
  if (bits_of(code_book) == 8) {
    const float scaled = (value + 1.0F) * 127.0F;
    const float rounded = -std::floor(0.5F - scaled);
    return rounded >= 0 ? static_cast<int64_t>(std::min(rounded, 254.0F)) : 0;
  }
  int64_t code = 0;
  for (double boundary : boundaries_of(code_book))
    if (value > boundary) ++code;
  return code;
}

void reference_quantize(const ReferenceContext& context) {
  const Attributes& attributes = context.node.attributes;
  const std::string& code_book = string_attribute(attributes, "code_book");
  const ReferenceTensor& x = context.operand(0);
  Shape shape;
  for (int64_t n : x.shape) shape.emplace_back(n);
  const Rows rows(shape, attributes);
  for (int64_t row = 0; row < rows.rows; ++row)
    for (int64_t block = 0; block < rows.blocks; ++block) {
      const int64_t begin = block * rows.block, end = std::min(begin + rows.block, rows.size);
      double scale = 0;
      for (int64_t i = begin; i < end; ++i)
        scale = std::isnan(scale) ? scale : std::max(std::abs(x.data[row * rows.size + i]), scale);
      context.result(1).data[row * rows.blocks + block] = scale;
      for (int64_t i = begin; i < end + (rows.is_packed ? end % 2 : 0); ++i) {
        const double divisor = scale == 0 ? 1 : scale;
        const float value =
            i < end ? static_cast<float>(x.data[row * rows.size + i]) / static_cast<float>(divisor) : 0;
        const auto code = static_cast<double>(nearest(code_book, value));
        if (rows.is_packed)
          context.result(0).data[row * rows.bytes + i / 2] += i % 2 == 0 ? code : 16 * code;
        else
          context.result(0).data[row * rows.bytes + i] = code;
      }
    }
}

void reference_dequantize(const ReferenceContext& context) {
  const Attributes& attributes = context.node.attributes;
  const std::vector<double> table = code_table(string_attribute(attributes, "code_book"));
  // Of equal steps also what no quantize gives: the code after the highest.
  const bool is_computed = is_uniform(string_attribute(attributes, "code_book"));
  const auto top = static_cast<double>(table.size() - 1);
  const auto value = [&](int64_t code) {
    return is_computed ? 2 * static_cast<double>(code) / top - 1 : table[static_cast<size_t>(code)];
  };
  ReferenceTensor& y = context.result();
  Shape shape;
  for (int64_t n : y.shape) shape.emplace_back(n);
  const Rows rows(shape, attributes);
  for (int64_t row = 0; row < rows.rows; ++row)
    for (int64_t i = 0; i < rows.size; ++i) {
      int64_t code =
          static_cast<int64_t>(context.operand(0).data[row * rows.bytes + (rows.is_packed ? i / 2 : i)]);
      if (rows.is_packed) code = i % 2 == 0 ? code % 16 : code / 16;
      y.data[row * rows.size + i] = value(code) * context.operand(1).data[row * rows.blocks + i / rows.block];
    }
}

// ---- kernels

// Of a table of 4 bits.
std::vector<double> values_of(const std::string& code_book) {
  const std::vector<double> table = code_table(code_book);
  if (!is_uniform(code_book)) return table;
  std::vector<double> values;
  const auto top = static_cast<double>(table.size() - 1);
  for (int code = 0; code < 16; ++code) values.push_back(2 * code / top - 1);
  return values;
}

// A block in a kernel: where it begins among the elements and among the codes, and how many elements it has.
struct Block {
  Expr first, byte, count;
};

Block block_at(KernelBuilder& k, const Rows& rows, Expr at) {
  Expr row = k.let("row", at / Expr(rows.blocks)), block = k.let("block", at % Expr(rows.blocks));
  Expr begin = k.let("begin", block * Expr(rows.block));
  const bool is_whole = rows.size % rows.block == 0;
  return {k.let("first", row * Expr(rows.size) + begin),
          k.let("byte", row * Expr(rows.bytes) + block * Expr(rows.is_packed ? rows.block / 2 : rows.block)),
          is_whole ? Expr(rows.block) : k.let("count", minimum(Expr(rows.block), Expr(rows.size) - begin))};
}

void lower_quantize(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  const std::string& code_book = string_attribute(lowering.attributes(), "code_book");
  const Rows rows(lowering.operand_type(0).shape, lowering.attributes());
  Buffer x = lowering.operand_buffer(0), codes = lowering.result_buffer(0),
         scales = lowering.result_buffer(1);
  k.parallel(rows.rows * rows.blocks, 20 * rows.rows * rows.size, [&](Expr at) {
    const auto [first, byte, count] = block_at(k, rows, at);
    Expr scale =
        k.let("scale", k.reduce(Reduction::kMax, 0, count, [&](Expr i) { return abs(x[first + i]); }));
    k.store(scales, at, scale);
    Expr divisor = k.let("divisor", select(scale == Expr(0.0), Expr(1.0), scale));
    if (!rows.is_packed) {
      k.loop(0, count, LoopKind::kVector, [&](Expr i) {
        // int8: equal steps are computed, halves go down. NaN becomes the lowest code; the scale says what it
        // was.
        Expr scaled = k.let("scaled", (x[first + i] / divisor + Expr(1.0)) * Expr(127.0));
        Expr rounded = k.let("rounded", -floor(Expr(0.5) - scaled));
        k.store(codes, byte + i,
                cast(DType::U8, cast(DType::I32, select(rounded >= Expr(0.0), minimum(rounded, Expr(254.0)),
                                                        Expr(0.0)))));
      });
      return;
    }
    k.code_search({codes.name, x.name, byte, first, count, divisor, boundaries_of(code_book)});
  });
}

void lower_dequantize(KernelLowering& lowering) {
  KernelBuilder& k = lowering.builder();
  const std::string& code_book = string_attribute(lowering.attributes(), "code_book");
  const Rows rows(lowering.result_type(0).shape, lowering.attributes());
  Buffer codes = lowering.operand_buffer(0), scales = lowering.operand_buffer(1),
         y = lowering.result_buffer(0);
  k.parallel(rows.rows * rows.blocks, 8 * rows.rows * rows.size, [&](Expr at) {
    const auto [first, byte, count] = block_at(k, rows, at);
    Expr scale = k.let("scale", scales[at]);
    if (!rows.is_packed) {
      k.loop(0, count, LoopKind::kVector, [&](Expr i) {
        // int8: equal steps are computed.
        Expr code = cast(DType::F32, cast(DType::I32, codes[byte + i]));
        k.store(y, first + i, (code - Expr(127.0)) * Expr(1.0 / 127) * scale);
      });
      return;
    }
    k.code_lookup({y.name, codes.name, first, byte, count, scale, values_of(code_book)});
  });
}

std::vector<AttributeSpec> shared_attributes() {
  return {
      {"code_book", AttributeKind::kString,
       "the table: nf4 (the 16 values of QLoRA's NormalFloat), int4 (16 equal steps less the lowest: -7/7 to "
       "7/7) or int8 (-127/127 to 127/127)",
       std::nullopt, code_book_names()},
      {"block", AttributeKind::kInt, "elements that share a scale; even", std::nullopt, {}}};
}

}  // namespace

void register_quantization_ops() {
  std::vector<AttributeSpec> dequantize_attributes = shared_attributes();
  dequantize_attributes.push_back({"size", AttributeKind::kInt, "n, the last axis of y", std::nullopt, {}});
  dequantize_attributes.push_back({"dtype", AttributeKind::kDType, "f32 or bf16", Attribute(DType::F32), {}});
  register_op({
      .name = "quantize",
      .family = "quantization",
      .doc =
          "Codes and scales of the elements, block by block along the last axis: the scale is the largest "
          "magnitude of the block, the code that of the table's value nearest to x / scale, of two the "
          "lower. "
          "Codes of 4 bits are packed, the earlier element in the lower half of a byte. A block with NaN or "
          "infinity has a scale that is not finite, so that what is made of it again is not, either.",
      .operands = {{"x", "floating [..., n]"}},
      .attributes = shared_attributes(),
      .results = {"codes", "scales"},
      .infer = infer_quantize,
      .flops =
          [](const Graph& graph, const Node& node) {
            return 4.0 * static_cast<double>(element_count(graph.type(node.operands[0]).shape).number());
          },
      .reference = reference_quantize,
      .kernel = lower_quantize,
  });
  register_op({
      .name = "dequantize",
      .family = "quantization",
      .doc = "The values that quantize has made codes and scales of: table[code] * scale.",
      .operands = {{"codes", "u8 [..., n], or [..., (n + 1) / 2] if they have 4 bits"},
                   {"scales", "f32 [..., blocks]"}},
      .attributes = dequantize_attributes,
      .results = {"y"},
      .infer = infer_dequantize,
      .reference = reference_dequantize,
      .kernel = lower_dequantize,
  });
}

}  // namespace kumi
