// The kernel IR: what a generated kernel computes, as loops, expressions, loads and stores.
//
// Expressions are immutable trees; statements form blocks. Both are plain data printed by the
// emitter (emitter.h) in one of its dialects, and built through KernelBuilder (kernel_builder.h).
// Indices and loop variables are i64. Arithmetic on values is in f32 (f64 where asked for);
// loads widen bf16 and f16 to f32, stores narrow them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graph/dtype.h"

namespace kumi {

struct ExprNode;

class Expr {
 public:
  Expr() = default;
  Expr(int value);      // NOLINT: an index constant, i64
  Expr(int64_t value);  // NOLINT
  Expr(double value);   // NOLINT: an f32 constant
  explicit Expr(std::shared_ptr<const ExprNode> node) : node_(std::move(node)) {}

  const ExprNode& node() const { return *node_; }
  const ExprNode* get() const { return node_.get(); }
  explicit operator bool() const { return node_ != nullptr; }
  DType dtype() const;

 private:
  std::shared_ptr<const ExprNode> node_;
};

struct ExprNode {
  enum Kind : uint8_t {
    kInteger,   // integer
    kFloat,     // number
    kVariable,  // name: a loop variable or a local
    kLoad,      // name: buffer or local array; arguments: {index}
    kUnary,     // name: "-", "!"
    kBinary,    // name: C's operator: + - * / % < <= > >= == != && ||
    kCall,      // name: a function of the prelude: kumi_exp, kumi_max, ...
    kSelect,    // arguments: {condition, if true, if false}
    kCast,      // arguments: {value}, to dtype
  };
  Kind kind = kInteger;
  DType dtype = DType::I64;
  std::string name;
  int64_t integer = 0;
  double number = 0;
  bool as_pair = false;  // kLoad: 32 bits of a bf16 buffer, the index counting pairs
  std::vector<Expr> arguments;
};

// Arithmetic. An index constant beside an f32 becomes an f32 constant; an i64 or i32 expression
// beside a floating one is cast. Constants are folded; x*1, x+0, x*0 (indices) are simplified.
// Division and modulo of indices are C's.
Expr operator+(Expr a, Expr b);
Expr operator-(Expr a, Expr b);
Expr operator*(Expr a, Expr b);
Expr operator/(Expr a, Expr b);
Expr operator%(Expr a, Expr b);
Expr operator-(Expr a);
Expr operator<(Expr a, Expr b);
Expr operator<=(Expr a, Expr b);
Expr operator>(Expr a, Expr b);
Expr operator>=(Expr a, Expr b);
Expr operator==(Expr a, Expr b);
Expr operator!=(Expr a, Expr b);
Expr operator&&(Expr a, Expr b);
Expr operator||(Expr a, Expr b);
Expr select(Expr condition, Expr if_true, Expr if_false);
Expr cast(DType dtype, Expr value);
Expr f64(double value);      // an f64 constant
double lowest(DType dtype);  // the lowest finite number of f32 or f64
// A constant of an element type; of 16-bit types it is an f32, as their values are in registers.
Expr constant(DType dtype, double value);

// Functions of the prelude; f32 (kept f64 for f64 arguments where the prelude has it: exp, sin, cos, floor).
Expr exp(Expr x);
Expr log(Expr x);
Expr tanh(Expr x);
Expr sin(Expr x);
Expr cos(Expr x);
Expr sqrt(Expr x);
Expr rsqrt(Expr x);  // 1 / sqrt(x)
Expr exp2(Expr x);   // 2^x for x up to 0; what is below 2^-126 becomes 2^-126. f32 only
// Two bf16 in one i32, the first in the lower half: rounded, or of numbers that are bf16 already.
Expr bf16_pair(Expr first, Expr second);
Expr exact_bf16_pair(Expr first, Expr second);
Expr pow(Expr x, Expr y);
Expr sigmoid(Expr x);  // 1 / (1 + exp(-x)), without overflow
Expr floor(Expr x);
Expr abs(Expr x);
Expr maximum(Expr a, Expr b);  // of floating-point numbers: NaN if either is
Expr minimum(Expr a, Expr b);

enum class LoopKind : uint8_t {
  kSerial,    // in order
  kVector,    // iterations independent; the compiler is asked to vectorise
  kUnrolled,  // in order, written out
};

enum class Reduction : uint8_t {
  kSum,
  kMax,
  kExpSum,  // the largest value, and the sum of exp(value - largest): each value is computed once
};

// A matrix in a buffer or local array, as a tile product sees it. Of f32 it counts elements; of bf16 or
// i32 it counts pairs of bf16 (32 bits) that stand next to each other in the depth of the product.
struct TileOperand {
  std::string buffer;
  DType dtype = DType::F32;
  Expr begin;
  Expr row_stride, column_stride;
};

// c[row][column] = sum over depth of a[row][depth] * b[depth][column], or += if `accumulate`: the core of
// a blocked matrix product, at the speed of a library's. c is f32, its columns and those of b are next
// to each other, and their number is a multiple of kTileColumns; rows are a multiple of kTileRows, so that
// what is beyond a matrix must be there, too.
inline constexpr int64_t kTileRows = 8;
inline constexpr int64_t kTileColumns = 16;
struct TileProduct {
  TileOperand c, a, b;
  Expr rows, depth;
  int64_t columns = 0;
  bool accumulate = false;
};

// y[i] = table[code i] * scale for codes of 4 bits, two a byte, the earlier in the lower half: at the speed
// of memory where the processor can look up in registers.
struct CodeLookup {
  std::string y, codes;  // buffers: f32 or bf16, and u8
  Expr y_begin, codes_begin;
  Expr count;  // of values
  Expr scale;
  std::vector<double> table;  // 16
};

// The other way round: code i is the number of boundaries that x[i] / divisor is greater than; none for NaN.
// The half of the last byte that is over has the code of 0.
struct CodeSearch {
  std::string codes, x;  // buffers: u8, and f32 or bf16
  Expr codes_begin, x_begin;
  Expr count;  // of values
  Expr divisor;
  std::vector<double> boundaries;  // at most 15, rising
};

// Whose a local array is: of one thread, kept in its registers, or of a team of threads.
enum class ArraySpace : uint8_t { kThread, kRegisters, kShared };

struct Stmt {
  enum Kind : uint8_t {
    kFor,           // for name in [begin, end), every step: body
    kReduce,        // name = reduction over loop `variable` in [begin, end) of value; name is a new local.
                    // Of kExpSum it is the largest value, and `source` the sum: another new local
    kDeclare,       // dtype name = value; const if `constant`
    kAssign,        // name = value
    kDeclareArray,  // dtype name[size]
    kStore,         // name[index] = value; name: buffer or local array
    kIf,            // if (value) body
    kTileProduct,   // tile
    kCodeLookup,    // lookup
    kCodeSearch,    // search
    kComment,       // name: the text
    // Of kernels for teams of threads only (simt_lowering.h):
    kBarrier,        // of the team
    kDeclareVector,  // a vector `name` of `size` elements of dtype
    kLoadVector,     // ... that holds what is in memory from `source`[index] on
    kStoreVector,    // the vector `source` to name[index] and what follows
  };
  Kind kind = kFor;
  std::string name;
  std::string variable;
  std::string source;
  ArraySpace space = ArraySpace::kThread;
  LoopKind loop = LoopKind::kSerial;
  Reduction reduction = Reduction::kSum;
  DType dtype = DType::F32;
  int64_t size = 0;
  bool constant = false;
  Expr begin, end, step, index, value;  // step: 1 if there is none
  std::shared_ptr<const TileProduct> tile;
  std::shared_ptr<const CodeLookup> lookup;
  std::shared_ptr<const CodeSearch> search;
  std::vector<Stmt> body;
};

// A buffer argument of the kernel: buffers[position], elements of dtype.
struct BufferParameter {
  std::string name;
  DType dtype = DType::F32;
  bool written = false;
  std::string comment;    // "x: f32[2, 32, 64]"
  int64_t alignment = 0;  // bytes that divide its address; 0: unknown
  int64_t elements = 0;   // from the first that is used to the last; 0: unknown
};

// How the threads of a GPU share the iterations of a phase: `team` threads next to each other work on one,
// `threads` make a block. What a team shares, loops over elements, is handed out in vectors of `vector`
// elements.
struct SimtSchedule {
  int64_t team = 1;
  int64_t threads = 256;
  int64_t vector = 1;
  int64_t blocks = 1;
};

// Instead of a loop: a function of the program's own text (KernelProgram::functions) that all threads of a
// grid call, with the block's dynamic shared memory, if there is any, and with the addresses of buffers:
//   function(shared, buffer, ...)
struct GridCall {
  std::string function;
  std::vector<std::string> buffers;
  int64_t shared_bytes = 0;
};

// One parallel loop over [0, extent) whose variable is `variable`.
struct Phase {
  std::string variable;
  int64_t extent = 0;
  int64_t work = 0;  // rough element operations of the whole phase
  LoopKind loop = LoopKind::kSerial;
  std::vector<Stmt> body;
  // Of kernels for teams of threads:
  SimtSchedule schedule;
  std::optional<GridCall> call;       // then there is no body, and the schedule is given
  std::optional<double> moved_bytes;  // moved_bytes.h
};

struct KernelProgram {
  std::string name;
  std::vector<std::string> comments;
  std::string functions;  // text that stands in front of the phases, for what they call
  std::vector<BufferParameter> buffers;
  std::vector<Phase> phases;
};

}  // namespace kumi
