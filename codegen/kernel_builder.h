// Writes a kernel in the kernel IR, statement by statement.
//
//   KernelBuilder k("row_scale");
//   Buffer x = k.buffer("x", DType::F32, false), y = k.buffer("y", DType::F32, true);
//   k.parallel(rows, rows * columns, [&](Expr r) {
//     Expr total = k.reduce(Reduction::kSum, 0, columns, [&](Expr c) { return x[r * columns + c]; });
//     k.loop(0, columns, LoopKind::kVector, [&](Expr c) { k.store(y, r * columns + c, x[r * columns + c] /
//     total); });
//   });
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "codegen/kernel_ir.h"

namespace kumi {

// A buffer argument or a local array; x[i] loads, widened to f32 if it is bf16 or f16.
struct Buffer {
  std::string name;
  DType dtype = DType::F32;

  Expr operator[](Expr index) const;
  // Two neighbouring bf16 as one i32, the index counting pairs: for tile products.
  Expr pair(Expr index) const;
};

// A mutable local variable. Reading it gives its value at that point of the program.
struct Local {
  std::string name;
  DType dtype = DType::F32;

  Expr value() const;
};

// Of Reduction::kExpSum.
struct ExpSum {
  Expr largest, total;
};

class KernelBuilder {
 public:
  explicit KernelBuilder(std::string name);

  Buffer buffer(const std::string& wish, DType dtype, bool written, const std::string& comment = "");

  // A parallel phase; phases run one after the other. `work`: rough element operations in total.
  // `kind` kVector: the phase's own loop is vectorised (flat element-wise kernels).
  void parallel(int64_t extent, int64_t work, const std::function<void(Expr)>& body,
                LoopKind kind = LoopKind::kSerial);
  // A phase that runs once, on one thread.
  void serial(const std::function<void()>& body) {
    parallel(1, 1, [&](Expr) { body(); });
  }

  // A phase of `blocks` blocks of `threads` threads that call a function of program().functions.
  void grid(int64_t blocks, int64_t threads, int64_t work, GridCall call);

  void loop(Expr begin, Expr end, LoopKind kind, const std::function<void(Expr)>& body);
  // The sum (0 if empty) or maximum (-infinity if empty) of body over [begin, end), vectorised; the
  // order of the additions is fixed by the compiled code, so results are the same in every run.
  Expr reduce(Reduction reduction, Expr begin, Expr end, const std::function<Expr(Expr)>& body);
  // The largest value of body over [begin, end), and the sum of exp(value - largest): what log-sum-exp and
  // softmax are made of, in one pass. Where there is nothing but -infinity, the lowest finite number and 0.
  ExpSum exp_sum(Expr begin, Expr end, const std::function<Expr(Expr)>& body);
  // A local holding the value, so that it is computed once: `const float t = value`.
  Expr let(const std::string& wish, Expr value);
  Local local(const std::string& wish, DType dtype, Expr initial);
  void assign(const Local& local, Expr value);
  // An uninitialised array on the thread's stack. At most kLargestArray bytes.
  Buffer array(const std::string& wish, DType dtype, int64_t size);
  void store(const Buffer& buffer, Expr index, Expr value);
  void if_(Expr condition, const std::function<void()>& body);
  void tile_product(TileProduct product);
  void code_lookup(CodeLookup lookup);
  void code_search(CodeSearch search);
  void comment(const std::string& text);

  KernelProgram& program() { return program_; }
  std::string unique(const std::string& wish);  // an identifier not yet used in this kernel

  static constexpr int64_t kLargestArray = 1 << 20;

 private:
  void append(Stmt statement);
  Stmt reduction(Reduction reduction, Expr begin, Expr end, const std::function<Expr(Expr)>& body);
  const Stmt* same_reduction(const Stmt& reduction) const;
  std::vector<Stmt> collect(const std::function<void()>& body);

  KernelProgram program_;
  std::vector<std::vector<Stmt>*> blocks_;
  std::vector<std::string> used_;
};

}  // namespace kumi
