#include "codegen/kernel_builder.h"

#include <algorithm>

#include "codegen/kernel_walk.h"
#include "graph/error.h"

namespace kumi {
namespace {

bool is_constant(const Expr& e) {
  return e.node().kind == ExprNode::kInteger || e.node().kind == ExprNode::kFloat;
}

}  // namespace

Expr Buffer::operator[](Expr index) const {
  ExprNode node;
  node.kind = ExprNode::kLoad;
  node.dtype = dtype == DType::BF16 || dtype == DType::F16 ? DType::F32 : dtype;
  node.name = name;
  node.arguments = {std::move(index)};
  return Expr(std::make_shared<const ExprNode>(std::move(node)));
}

Expr Buffer::pair(Expr index) const {
  ExprNode node;
  node.kind = ExprNode::kLoad;
  node.dtype = DType::I32;
  node.name = name;
  node.as_pair = true;
  node.arguments = {std::move(index)};
  return Expr(std::make_shared<const ExprNode>(std::move(node)));
}

Expr Local::value() const {
  return variable(name, dtype);
}

KernelBuilder::KernelBuilder(std::string name) {
  program_.name = std::move(name);
}

std::string KernelBuilder::unique(const std::string& wish) {
  // Only letters, digits and underscores survive; what is left of a dotted value name stays readable.
  std::string stem;
  for (char c : wish) stem += isalnum(static_cast<unsigned char>(c)) ? c : '_';
  if (stem.empty() || isdigit(static_cast<unsigned char>(stem[0]))) stem = "v" + stem;
  std::string name = stem;
  for (int i = 2; std::find(used_.begin(), used_.end(), name) != used_.end(); ++i)
    name = stem + "_" + std::to_string(i);
  used_.push_back(name);
  return name;
}

Buffer KernelBuilder::buffer(const std::string& wish, DType dtype, bool written, const std::string& comment) {
  Buffer buffer{unique(wish), dtype};
  program_.buffers.push_back({buffer.name, dtype, written, comment});
  return buffer;
}

void KernelBuilder::append(Stmt statement) {
  if (blocks_.empty()) throw Error("kernel " + program_.name + ": a statement stands outside of parallel()");
  blocks_.back()->push_back(std::move(statement));
}

std::vector<Stmt> KernelBuilder::collect(const std::function<void()>& body) {
  std::vector<Stmt> statements;
  blocks_.push_back(&statements);
  body();
  blocks_.pop_back();
  return statements;
}

void KernelBuilder::parallel(int64_t extent, int64_t work, const std::function<void(Expr)>& body,
                             LoopKind kind) {
  Phase phase;
  phase.loop = kind;
  phase.variable = unique("i");
  phase.extent = extent;
  phase.work = work;
  phase.body = collect([&] { body(variable(phase.variable, DType::I64)); });
  program_.phases.push_back(std::move(phase));
}

void KernelBuilder::grid(int64_t blocks, int64_t threads, int64_t work, GridCall call) {
  Phase phase;
  phase.variable = unique("i");
  phase.extent = blocks;
  phase.work = work;
  phase.schedule.threads = threads;
  phase.schedule.blocks = blocks;
  phase.call = std::move(call);
  program_.phases.push_back(std::move(phase));
}

void KernelBuilder::loop(Expr begin, Expr end, LoopKind kind, const std::function<void(Expr)>& body) {
  Stmt statement;
  statement.kind = Stmt::kFor;
  statement.name = unique("j");
  statement.loop = kind;
  statement.begin = std::move(begin);
  statement.end = std::move(end);
  statement.body = collect([&] { body(variable(statement.name, DType::I64)); });
  append(std::move(statement));
}

Expr KernelBuilder::reduce(Reduction reduction, Expr begin, Expr end, const std::function<Expr(Expr)>& body) {
  const Stmt statement = this->reduction(reduction, std::move(begin), std::move(end), body);
  return variable(statement.name, statement.dtype);
}

ExpSum KernelBuilder::exp_sum(Expr begin, Expr end, const std::function<Expr(Expr)>& body) {
  const Stmt statement = reduction(Reduction::kExpSum, std::move(begin), std::move(end), body);
  return {variable(statement.name, statement.dtype), variable(statement.source, statement.dtype)};
}

// The one appended, or one that has computed the same before.
Stmt KernelBuilder::reduction(Reduction reduction, Expr begin, Expr end,
                              const std::function<Expr(Expr)>& body) {
  Stmt statement;
  statement.kind = Stmt::kReduce;
  statement.name = unique(reduction == Reduction::kSum ? "sum" : "max");
  if (reduction == Reduction::kExpSum) statement.source = unique("exp_sum");
  statement.variable = unique("j");
  statement.reduction = reduction;
  statement.begin = std::move(begin);
  statement.end = std::move(end);
  statement.body = collect([&] { statement.value = body(variable(statement.variable, DType::I64)); });
  statement.dtype = statement.value.dtype();
  if (const Stmt* same = same_reduction(statement)) return *same;
  append(statement);
  return statement;
}

// One that has computed the same just before, with nothing changed since.
const Stmt* KernelBuilder::same_reduction(const Stmt& reduction) const {
  const std::string text = spelled_reduction(reduction);
  if (blocks_.empty() || text.empty()) return nullptr;
  for (auto s = blocks_.back()->rbegin(); s != blocks_.back()->rend(); ++s) {
    if (s->kind == Stmt::kReduce && spelled_reduction(*s) == text) return &*s;
    const bool changes_nothing =
        s->kind == Stmt::kReduce || s->kind == Stmt::kDeclare || s->kind == Stmt::kComment;
    if (!changes_nothing) return nullptr;
  }
  return nullptr;
}

Expr KernelBuilder::let(const std::string& wish, Expr value) {
  if (is_constant(value)) return value;
  Stmt statement;
  statement.kind = Stmt::kDeclare;
  statement.name = unique(wish);
  statement.dtype = value.dtype();
  statement.constant = true;
  Expr result = variable(statement.name, statement.dtype);
  statement.value = std::move(value);
  append(std::move(statement));
  return result;
}

Local KernelBuilder::local(const std::string& wish, DType dtype, Expr initial) {
  Stmt statement;
  statement.kind = Stmt::kDeclare;
  statement.name = unique(wish);
  statement.dtype = dtype;
  statement.value = cast(dtype, std::move(initial));
  Local local{statement.name, dtype};
  append(std::move(statement));
  return local;
}

void KernelBuilder::assign(const Local& local, Expr value) {
  Stmt statement;
  statement.kind = Stmt::kAssign;
  statement.name = local.name;
  statement.value = cast(local.dtype, std::move(value));
  append(std::move(statement));
}

Buffer KernelBuilder::array(const std::string& wish, DType dtype, int64_t size) {
  if (size * size_of(dtype) > kLargestArray)
    throw Error(concat("kernel ", program_.name, ": a local array of ", size * size_of(dtype), " bytes"))
        .expected(concat("at most ", kLargestArray));
  Stmt statement;
  statement.kind = Stmt::kDeclareArray;
  statement.name = unique(wish);
  statement.dtype = dtype;
  statement.size = std::max<int64_t>(size, 1);
  Buffer buffer{statement.name, dtype};
  append(std::move(statement));
  return buffer;
}

void KernelBuilder::store(const Buffer& buffer, Expr index, Expr value) {
  Stmt statement;
  statement.kind = Stmt::kStore;
  statement.name = buffer.name;
  statement.dtype = buffer.dtype;
  statement.index = std::move(index);
  statement.value = std::move(value);
  append(std::move(statement));
}

void KernelBuilder::if_(Expr condition, const std::function<void()>& body) {
  Stmt statement;
  statement.kind = Stmt::kIf;
  statement.value = std::move(condition);
  statement.body = collect(body);
  append(std::move(statement));
}

void KernelBuilder::tile_product(TileProduct product) {
  if (product.columns <= 0 || product.columns % kTileColumns != 0)
    throw Error(concat("kernel ", program_.name, ": a tile product has ", product.columns, " columns"))
        .expected(concat("a multiple of ", kTileColumns));
  Stmt statement;
  statement.kind = Stmt::kTileProduct;
  statement.tile = std::make_shared<const TileProduct>(std::move(product));
  append(std::move(statement));
}

void KernelBuilder::code_lookup(CodeLookup lookup) {
  Stmt statement;
  statement.kind = Stmt::kCodeLookup;
  statement.lookup = std::make_shared<const CodeLookup>(std::move(lookup));
  append(std::move(statement));
}

void KernelBuilder::code_search(CodeSearch search) {
  Stmt statement;
  statement.kind = Stmt::kCodeSearch;
  statement.search = std::make_shared<const CodeSearch>(std::move(search));
  append(std::move(statement));
}

void KernelBuilder::comment(const std::string& text) {
  Stmt statement;
  statement.kind = Stmt::kComment;
  statement.name = text;
  append(std::move(statement));
}

}  // namespace kumi
