// Shape rules: what they give for symbolic sizes, and what they say when they refuse.
#include <gtest/gtest.h>

#include "graph/builder.h"
#include "graph/op.h"
#include "ops/all_ops.h"

namespace kumi {
namespace {

Type f32(Shape shape) {
  return {DType::F32, std::move(shape)};
}

// The first result's type, or the error's message.
std::string infer(const std::string& op, const std::vector<Type>& operands, Attributes attributes = {}) {
  register_all_ops();
  std::vector<const Type*> pointers;
  for (const Type& type : operands) pointers.push_back(&type);
  try {
    return to_string(infer_types(op_of(op), pointers, &attributes)[0]);
  } catch (const Error& error) {
    return error.what();
  }
}

const Dim kBatch = Dim::symbol("batch"), kSeq = Dim::symbol("seq");
const Dim kHidden = Dim::named("hidden", 64), kFfn = Dim::named("ffn", 96);

TEST(ShapeRules, KeepSymbolicSizes) {
  EXPECT_EQ(infer("add", {f32({kBatch, kSeq, kHidden}), f32({kHidden})}), "f32[batch, seq, hidden=64]");
  EXPECT_EQ(infer("mul", {f32({kBatch, 1}), f32({1, kHidden})}), "f32[batch, hidden=64]");
  EXPECT_EQ(infer("reshape", {f32({kBatch, kSeq, kHidden})}, {{"shape", Shape{Dim(-1), kHidden}}}),
            "f32[batch*seq, hidden=64]");
  EXPECT_EQ(infer("reshape", {f32({kBatch, kSeq, kHidden})}, {{"shape", Shape{kBatch, kSeq, 4, Dim(-1)}}}),
            "f32[batch, seq, 4, 16]");
  EXPECT_EQ(infer("transpose", {f32({kBatch, kSeq, kHidden})}, {{"axes", Shape{0, -1, 1}}}),
            "f32[batch, hidden=64, seq]");
  EXPECT_EQ(infer("slice", {f32({kBatch, kSeq})}, {{"axis", Dim(1)}, {"end", kSeq - Dim(1)}}),
            "f32[batch, seq - 1]");
  EXPECT_EQ(
      infer("slice", {f32({kBatch, 2 * kSeq})}, {{"axis", Dim(-1)}, {"begin", kSeq}, {"end", 2 * kSeq}}),
      "f32[batch, seq]");
  EXPECT_EQ(infer("pad", {f32({kBatch, kSeq})}, {{"axis", Dim(1)}, {"before", Dim(1)}}),
            "f32[batch, seq + 1]");
  EXPECT_EQ(infer("concat", {f32({kBatch, kSeq}), f32({kBatch, 3})}, {{"axis", Dim(1)}}),
            "f32[batch, seq + 3]");
  EXPECT_EQ(infer("sum", {f32({kBatch, kSeq, kHidden})}, {{"axes", Shape{Dim(-1)}}}), "f32[batch, seq]");
  EXPECT_EQ(infer("mean", {f32({kBatch, kSeq})}), "f32[]");
  EXPECT_EQ(infer("max", {f32({kBatch, kSeq})}, {{"axes", Shape{0}}, {"keep_axes", true}}), "f32[1, seq]");
}

struct Refusal {
  const char* op;
  std::vector<Type> operands;
  Attributes attributes;
  const char* message;
};

TEST(ShapeRules, OfACacheSayWhatDoesNotFit) {
  const Type position{DType::I32, {}}, kept = f32({1, 2, 16, 8}), q = f32({1, 4, 3, 8});
  EXPECT_EQ(infer("dynamic_slice", {f32({kSeq, kHidden}), position}, {{"size", kBatch}}),
            "f32[batch, hidden=64]");
  EXPECT_EQ(infer("cache_update", {kept, f32({1, 2, 3, 8}), position}), "f32[1, 2, 16, 8]");
  EXPECT_EQ(infer("attention_cached", {q, kept, kept, position}), "f32[1, 4, 3, 8]");
  const Refusal kTable[] = {
      {"dynamic_slice", {kept, f32({})}, {{"size", Dim(1)}}, "'position' needs the type i32[], found f32[]"},
      {"dynamic_slice", {kept, {DType::I32, {1}}}, {{"size", Dim(1)}}, "'position' needs the type i32[]"},
      {"dynamic_slice", {kept, position}, {{"size", Dim(2)}}, "the slice has 2 elements on an axis of 1"},
      {"dynamic_slice", {kept, position}, {{"size", Dim(0)}}, "'size' is 0"},
      {"dynamic_slice", {kept, position}, {{"size", Dim(1)}, {"axis", Dim(4)}}, "there is no axis 4"},
      {"cache_update", {kept, f32({1, 2, 17, 8}), position}, {}, "'piece' has 17 elements on an axis of 16"},
      {"cache_update", {kept, f32({1, 3, 1, 8}), position}, {}, "must be alike but for axis 2"},
      {"cache_update", {kept, {DType::BF16, {1, 2, 1, 8}}, position}, {}, "must be alike but for axis 2"},
      {"cache_update", {kept, kept, kept}, {}, "'position' needs the type i32[]"},
      {"attention_cached", {q, kept, f32({1, 2, 15, 8}), position}, {}, "need the same type"},
      {"attention_cached", {f32({2, 4, 3, 8}), kept, kept, position}, {}, "batch sizes of q and keys differ"},
      {"attention_cached", {f32({1, 4, 3, 6}), kept, kept, position}, {}, "head sizes of q and keys differ"},
      {"attention_cached",
       {f32({1, 3, 3, 8}), kept, kept, position},
       {},
       "a multiple of the key/value heads"},
      {"attention_cached", {f32({1, 4, 17, 8}), kept, kept, position}, {}, "'q' has 17 elements"},
      {"attention_cached", {f32({4, 3, 8}), kept, kept, position}, {}, "'q' needs the axes"},
      {"rope", {q, f32({})}, {}, "'position' needs the type i32[], found f32[]"},
  };
  for (const Refusal& line : kTable) {
    std::string message = infer(line.op, line.operands, line.attributes);
    EXPECT_NE(message.find(line.message), std::string::npos) << line.op << ": " << message;
  }
}

TEST(ShapeRules, SayWhatDoesNotFit) {
  const Type wide = f32({kBatch, kHidden}), other = f32({kBatch, kFfn}), ids{DType::I32, {kBatch}};
  const Refusal kTable[] = {
      {"add", {wide, other}, {}, "add: sizes of axis -1 differ: hidden (64) and ffn (96)"},
      {"mul", {f32({kBatch, 3}), f32({kSeq, 1})}, {}, "sizes of axis -2 differ: batch and seq"},
      {"add", {wide, {DType::BF16, {kHidden}}}, {}, "add: element types differ: f32 and bf16"},
      {"div", {ids, ids}, {}, "div: 'a' needs a floating-point type, found i32[batch]"},
      {"add", {{DType::BOOL, {}}, {DType::BOOL, {}}}, {}, "add: needs a floating type, i32 or i64"},
      {"exp", {ids}, {}, "exp: 'x' needs a floating-point type"},
      {"select", {wide, wide, wide}, {}, "select: 'condition' needs the type bool"},
      {"select", {{DType::BOOL, {kFfn}}, wide, wide}, {}, "differ: ffn (96) and hidden (64)"},
      {"cast", {wide}, {}, "cast: the attribute 'dtype' is missing"},
      {"reshape", {wide}, {{"shape", Shape{kBatch, 63}}}, "the numbers of elements differ"},
      {"reshape", {wide}, {{"shape", Shape{-1, 7}}}, "no multiple of 7"},
      {"reshape", {wide}, {{"shape", Shape{-1, -1}}}, "two sizes are -1"},
      {"transpose", {wide}, {{"axes", Shape{0}}}, "each must be given once"},
      {"transpose", {wide}, {{"axes", Shape{0, -2}}}, "the axis 0 is given twice"},
      {"transpose", {wide}, {{"axes", Shape{0, 2}}}, "there is no axis 2 in f32[batch, hidden (64)]"},
      {"slice",
       {wide},
       {{"axis", Dim(1)}, {"begin", Dim(3)}, {"end", Dim(65)}},
       "elements 3 to 65 (excluded)"},
      {"slice", {wide}, {{"axis", Dim(1)}, {"begin", Dim(3)}, {"end", Dim(3)}}, "elements 3 to 3"},
      {"slice", {wide}, {{"axis", Dim(1)}, {"begin", Dim(-1)}, {"end", Dim(3)}}, "elements -1 to 3"},
      {"slice", {wide}, {{"axis", Dim(2)}, {"end", Dim(3)}}, "axes are 0 to 1, or -1 (the last) to -2"},
      {"slice", {f32({})}, {{"axis", Dim(0)}, {"end", Dim(1)}}, "the operand is a scalar"},
      {"pad", {wide}, {{"axis", Dim(0)}, {"before", Dim(-1)}}, "'before' is -1"},
      {"concat", {wide, other}, {{"axis", Dim(0)}}, "operands must be alike but for axis 0"},
      {"concat", {wide, f32({kHidden})}, {{"axis", Dim(0)}}, "operands must be alike"},
      {"concat", {}, {{"axis", Dim(0)}}, "the operand 'x' is missing"},
      {"broadcast", {wide}, {{"shape", Shape{kHidden}}}, "does not broadcast to [hidden (64)]"},
      {"broadcast", {wide}, {{"shape", Shape{kBatch, 1}}}, "does not broadcast"},
      {"sum", {ids}, {}, "sum: 'x' needs a floating-point type"},
      {"sum", {wide}, {{"axes", Shape{2}}}, "there is no axis 2"},
      {"max", {wide}, {{"axes", Shape{1, -1}}}, "the axis 1 is given twice"},
      {"constant", {}, {{"value", 0.5}, {"dtype", DType::I32}}, "the value 0.5 is none of the type i32"},
      {"constant", {}, {{"value", 256.0}, {"dtype", DType::U8}}, "integers from 0.0 to 255.0"},
      {"constant", {}, {{"value", 2.0}, {"dtype", DType::BOOL}}, "integers from 0.0 to 1.0"},
      {"constant", {}, {{"value", 3e9}, {"dtype", DType::I32}}, "is none of the type i32"},
  };
  for (const Refusal& refusal : kTable) {
    std::string message = infer(refusal.op, refusal.operands, refusal.attributes);
    EXPECT_NE(message.find(refusal.message), std::string::npos)
        << "wanted: " << refusal.message << "\nfound: " << message;
  }
}

}  // namespace
}  // namespace kumi
