#include "codegen/emitter.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include "codegen/kernel_walk.h"
#include "codegen/simt_lowering.h"
#include "codegen/simt_schedule.h"
#include "graph/error.h"

namespace kumi {

const Dialect& host_dialect() {
  static const Dialect dialect = {
      .name = "host C++",
      // Iterations are independent: no checks at run time, which would see overlap in the rows of two parts.
      .vector_loop_pragma = "#pragma clang loop vectorize(assume_safety)",
      // Short inner loops are unrolled first; what then remains must not be vectorised across, with a
      // gather for each element.
      .outer_loop_pragma = "#pragma clang loop vectorize(disable)",
      .reduction_block_begin = "#pragma clang fp reassociate(on)",
      .reduction_pragma = "#pragma clang loop vectorize(enable) interleave_count(4)",
      .unrolled_loop_pragma = "#pragma clang loop unroll(full)",
      .restrict_keyword = "__restrict",
      .array_alignment = "alignas(64) ",
  };
  return dialect;
}

const Dialect& cuda_dialect() {
  static const Dialect dialect = {
      .name = "CUDA C++",
      .is_simt = true,
      .vector_loop_pragma = "",
      .outer_loop_pragma = "",
      .reduction_block_begin = "",
      .reduction_pragma = "",
      .unrolled_loop_pragma = "#pragma unroll",
      .restrict_keyword = "__restrict__",
      .array_alignment = "",
  };
  return dialect;
}

const Dialect& dialect_of(std::string_view device) {
  return device.starts_with("cuda") ? cuda_dialect() : host_dialect();
}

namespace {

// Element types as the prelude spells them.
const char* c_type(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return "float";
    case DType::F64:
      return "double";
    case DType::BF16:
      return "kumi_bf16";
    case DType::F16:
      return "kumi_f16";
    case DType::I32:
      return "int";
    case DType::I64:
      return "long";
    case DType::U8:
      return "unsigned char";
    case DType::BOOL:
      return "bool";
  }
  return "?";
}

// C's precedence of a binary operator, so that only needed parentheses are printed.
int precedence(const std::string& op) {
  static const std::map<std::string, int> table = {{"*", 10}, {"/", 10}, {"%", 10}, {"+", 9},  {"-", 9},
                                                   {"<", 8},  {"<=", 8}, {">", 8},  {">=", 8}, {"==", 7},
                                                   {"!=", 7}, {"&&", 4}, {"||", 3}};
  return table.at(op);
}
constexpr int kUnaryPrecedence = 12;
constexpr int kSelectPrecedence = 2;

// Division and modulo of 64 bits take a GPU some 100 instructions, and each index two registers.
bool has_short_indices(const KernelProgram& program) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const auto is_short = [](const BufferParameter& buffer) {
    return buffer.dtype != DType::I64 && buffer.elements > 0 && buffer.elements <= kMost;
  };
  const auto is_small = [](const Phase& phase) {
    const SimtSchedule& schedule = phase.schedule;
    return phase.extent <= kMost && schedule.blocks * schedule.threads * schedule.vector <= kMost;
  };
  return std::all_of(program.buffers.begin(), program.buffers.end(), is_short) &&
         std::all_of(program.phases.begin(), program.phases.end(), is_small);
}

class Printer {
 public:
  Printer(const KernelProgram& program, const Dialect& dialect) : program_(program), dialect_(dialect) {
    for (const BufferParameter& buffer : program.buffers) element_types_[buffer.name] = buffer.dtype;
    index_ = dialect.is_simt && has_short_indices(program) ? "int" : "long";
  }

  Kernel print() {
    Kernel kernel;
    kernel.name = program_.name;
    line("// " + program_.name);
    for (const std::string& comment : program_.comments) line("// " + comment);
    out_ += program_.functions;
    for (size_t i = 0; i < program_.phases.size(); ++i) {
      std::string symbol = program_.name + "_phase" + std::to_string(i);
      print_phase(program_.phases[i], symbol);
      const Phase& phase = program_.phases[i];
      KernelPhase& added = kernel.phases.emplace_back(symbol, phase.extent, phase.work);
      if (!dialect_.is_simt) continue;
      added.blocks = phase.schedule.blocks;
      added.threads = phase.schedule.threads;
      added.shared_bytes = phase.call ? phase.call->shared_bytes : 0;
      added.moved_bytes = phase.moved_bytes.value_or(0);
    }
    kernel.buffers = static_cast<int64_t>(program_.buffers.size());
    kernel.source = std::move(out_);
    return kernel;
  }

 private:
  // Of a value in a register.
  std::string value_type(DType dtype) const { return dtype == DType::I64 ? index_ : c_type(dtype); }

  void line(const std::string& text) {
    if (!text.empty()) out_ += std::string(2 * depth_, ' ') + text;
    out_ += "\n";
  }
  void pragma(const std::string& text) {
    if (!text.empty()) line(text);
  }

  void print_phase(const Phase& phase, const std::string& symbol) {
    line("");
    if (phase.call)
      begin_call(phase, symbol);
    else if (dialect_.is_simt)
      begin_simt(phase, symbol);
    else
      begin_loop(phase, symbol);
    for (const Stmt& statement : phase.body) print(statement);
    for (; depth_ > 0;) {
      --depth_;
      line("}");
    }
  }

  void begin_loop(const Phase& phase, const std::string& symbol) {
    line("extern \"C\" void " + symbol + "(void* const* buffers, long begin, long end) {");
    ++depth_;
    declare_buffers(phase, "buffers");
    print_loop_pragma(phase.loop, phase.body);
    line("for (long " + phase.variable + " = begin; " + phase.variable + " < end; ++" + phase.variable +
         ") {");
    ++depth_;
  }

  // The thread finds its iteration, or the first element of its vector.
  void begin_simt(const Phase& phase, const std::string& symbol) {
    const SimtSchedule& schedule = schedule_ = phase.schedule;
    line("// " + to_string(schedule));
    line(concat("KUMI_KERNEL(", symbol, ", ", program_.buffers.size(), ", ", schedule.threads, ") {"));
    ++depth_;
    declare_buffers(phase, "buffers.data");
    const std::string thread =
        concat("((", index_, ")blockIdx.x * ", schedule.threads, " + (", index_, ")threadIdx.x)");
    if (schedule.team > 1)
      line(concat("const ", index_, " ", kLaneName, " = threadIdx.x % ", schedule.team, ";"));
    const int64_t step = phase.loop == LoopKind::kVector ? schedule.vector : 1;
    line(concat("const ", index_, " ", phase.variable, " = ", thread,
                schedule.team > 1 ? concat(" / ", schedule.team) : "", step > 1 ? concat(" * ", step) : "",
                ";"));
    if (schedule.blocks * schedule.threads / schedule.team * step != phase.extent)
      line(concat("if (", phase.variable, " >= ", phase.extent, ") return;"));
  }

  void begin_call(const Phase& phase, const std::string& symbol) {
    const GridCall& call = *phase.call;
    line(concat("// ", phase.schedule.blocks, " blocks of ", phase.schedule.threads, " threads"));
    line(concat("KUMI_KERNEL(", symbol, ", ", program_.buffers.size(), ", ", phase.schedule.threads, ") {"));
    ++depth_;
    declare_buffers(phase, "buffers.data");
    std::vector<std::string> arguments = call.buffers;
    if (call.shared_bytes > 0) {
      line(concat("KUMI_DYNAMIC_SHARED(shared, ", call.shared_bytes, ");"));
      arguments.insert(arguments.begin(), "shared");
    }
    line(concat(call.function, "(", joined(arguments), ");"));
  }

  void declare_buffers(const Phase& phase, const std::string& array) {
    std::map<std::string, bool> used;
    if (phase.call)
      for (const std::string& buffer : phase.call->buffers) used[buffer] = true;
    for (const Stmt& statement : phase.body) mark_used(statement, &used);
    for (size_t i = 0; i < program_.buffers.size(); ++i) {
      const BufferParameter& buffer = program_.buffers[i];
      if (!used[buffer.name]) continue;
      std::string type = std::string(buffer.written ? "" : "const ") + c_type(buffer.dtype) + "*";
      line(type + " " + dialect_.restrict_keyword + " " + buffer.name + " = (" + type + ")" + array + "[" +
           std::to_string(i) + "];" + (buffer.comment.empty() ? "" : "  // " + buffer.comment));
    }
  }

  void print_loop_pragma(LoopKind loop, const std::vector<Stmt>& body) {
    if (loop == LoopKind::kVector)
      pragma(dialect_.vector_loop_pragma);
    else if (loop == LoopKind::kUnrolled)
      pragma(dialect_.unrolled_loop_pragma);
    else if (has_vector_loop(body))
      pragma(dialect_.outer_loop_pragma);
  }

  static bool has_vector_loop(const std::vector<Stmt>& body) {
    return std::any_of(body.begin(), body.end(), [](const Stmt& s) {
      return (s.kind == Stmt::kFor && s.loop == LoopKind::kVector) || has_vector_loop(s.body);
    });
  }

  static void mark_used(const Expr& e, std::map<std::string, bool>* used) {
    if (!e) return;
    if (e.node().kind == ExprNode::kLoad) (*used)[e.node().name] = true;
    for (const Expr& argument : e.node().arguments) mark_used(argument, used);
  }

  static void mark_used(const Stmt& s, std::map<std::string, bool>* used) {
    if (s.kind == Stmt::kStore || s.kind == Stmt::kStoreVector) (*used)[s.name] = true;
    if (s.kind == Stmt::kLoadVector) (*used)[s.source] = true;
    for_each_expression(s, [&](const Expr& e) { mark_used(e, used); });
    if (s.tile)
      for (const TileOperand* operand : {&s.tile->a, &s.tile->b, &s.tile->c}) (*used)[operand->buffer] = true;
    if (s.lookup)
      for (const std::string& buffer : {s.lookup->y, s.lookup->codes}) (*used)[buffer] = true;
    if (s.search)
      for (const std::string& buffer : {s.search->codes, s.search->x}) (*used)[buffer] = true;
    for (const Stmt& inner : s.body) mark_used(inner, used);
  }

  void print(const Stmt& s) {
    switch (s.kind) {
      case Stmt::kFor:
        print_loop_pragma(s.loop, s.body);
        line("for (" + index_ + " " + s.name + " = " + text(s.begin) + "; " + s.name + " < " + text(s.end) +
             "; " + (s.step ? s.name + " += " + text(s.step) : "++" + s.name) + ") {");
        ++depth_;
        for (const Stmt& inner : s.body) print(inner);
        --depth_;
        line("}");
        break;
      case Stmt::kReduce:
        print_reduction(s);
        break;
      case Stmt::kDeclare:
        line(std::string(s.constant ? "const " : "") + value_type(s.dtype) + " " + s.name + " = " +
             text(s.value) + ";");
        break;
      case Stmt::kAssign:
        line(s.name + " = " + text(s.value) + ";");
        break;
      case Stmt::kDeclareArray:
        element_types_[s.name] = s.dtype;
        print_array(s);
        break;
      case Stmt::kStore: {
        std::string value = text(s.value);
        if (s.dtype == DType::BF16)
          value = "kumi_to_bf16(" + value + ")";
        else if (s.value.dtype() != s.dtype)
          value = "(" + std::string(c_type(s.dtype)) + ")(" + value + ")";
        line(s.name + "[" + text(s.index) + "] = " + value + ";");
        break;
      }
      case Stmt::kIf:
        line("if (" + text(s.value) + ") {");
        ++depth_;
        for (const Stmt& inner : s.body) print(inner);
        --depth_;
        line("}");
        break;
      case Stmt::kTileProduct:
        print_tile_product(*s.tile);
        break;
      case Stmt::kCodeLookup:
        print_code_lookup(*s.lookup);
        break;
      case Stmt::kCodeSearch:
        print_code_search(*s.search);
        break;
      case Stmt::kComment:
        line("// " + s.name);
        break;
      case Stmt::kBarrier:
        line(concat("kumi_team_barrier<", schedule_.team, ">();"));
        break;
      case Stmt::kDeclareVector:
        element_types_[s.name + ".data"] = s.dtype;
        line(concat("kumi_vector<", c_type(s.dtype), ", ", s.size, "> ", s.name, ";"));
        break;
      case Stmt::kLoadVector:
        element_types_[s.name + ".data"] = s.dtype;
        line(concat("const kumi_vector<", c_type(s.dtype), ", ", s.size, "> ", s.name, " = kumi_load_vector<",
                    s.size, ">(", s.source, " + (", text(s.index), "));"));
        break;
      case Stmt::kStoreVector:
        line(
            concat("kumi_store_vector<", s.size, ">(", s.name, " + (", text(s.index), "), ", s.source, ");"));
        break;
    }
  }

  void print_array(const Stmt& s) {
    const std::string type = c_type(s.dtype);
    if (s.space != ArraySpace::kShared) {
      line(concat(s.space == ArraySpace::kThread ? dialect_.array_alignment : "", type, " ", s.name, "[",
                  s.size, "];"));
      return;
    }
    // One for each team of the block, a multiple of 16 bytes apart.
    const int64_t teams = schedule_.threads / schedule_.team, unit = 16 / size_of(s.dtype);
    const int64_t size = (s.size + unit - 1) / unit * unit;
    line(concat("alignas(16) __shared__ ", type, " ", s.name, "_of_block[", teams * size, "];"));
    line(concat(type, "* ", s.name, " = ", s.name, "_of_block + threadIdx.x / ", schedule_.team, " * ", size,
                ";"));
  }

  // Arguments that say which part of the work is this thread's.
  std::string share() const {
    if (!dialect_.is_simt) return "";
    return schedule_.team == 1 ? std::string(", 0, 1") : concat(", ", kLaneName, ", ", schedule_.team);
  }

  void print_tile_product(const TileProduct& p) {
    auto pointer = [&](const TileOperand& operand) {
      const std::string cast = operand.dtype == DType::BF16 ? "(const int*)" : "";
      // Of bf16 the place is counted in pairs, too.
      return cast + operand.buffer + " + (" + text(operand.begin) + ")";
    };
    line("kumi_tile_product<" + std::to_string(p.columns) + ", " + (p.accumulate ? "true" : "false") + ">(" +
         pointer(p.c) + ", " + text(p.c.row_stride) + ", " + pointer(p.a) + ", " + text(p.a.row_stride) +
         ", " + text(p.a.column_stride) + ", " + pointer(p.b) + ", " + text(p.b.row_stride) + ", " +
         text(p.rows) + ", " + text(p.depth) + ");");
  }

  // In one register of 16 numbers; what is missing is greater than everything.
  void print_table(const char* name, std::vector<double> values) {
    values.resize(16, std::numeric_limits<double>::infinity());
    std::vector<std::string> numbers;
    for (double value : values) numbers.push_back(number(value, DType::F32));
    line(concat("static const float ", name, "[16] = {", joined(numbers), "};"));
  }

  void print_code_lookup(const CodeLookup& lookup) {
    print_table("table", lookup.table);
    line("kumi_look_up(" + lookup.y + " + (" + text(lookup.y_begin) + "), " + lookup.codes + " + (" +
         text(lookup.codes_begin) + "), " + text(lookup.count) + ", " + text(lookup.scale) + ", table" +
         share() + ");");
  }

  void print_code_search(const CodeSearch& search) {
    print_table("boundaries", search.boundaries);
    line("kumi_search(" + search.codes + " + (" + text(search.codes_begin) + "), " + search.x + " + (" +
         text(search.x_begin) + "), " + text(search.count) + ", " + text(search.divisor) + ", boundaries" +
         share() + ");");
  }

  void print_reduction(const Stmt& s) {
    if (s.reduction == Reduction::kExpSum) return print_exp_sum(s);
    const bool is_sum = s.reduction == Reduction::kSum;
    declare(s, s.name, is_sum ? "0" : s.dtype == DType::F64 ? "-KUMI_INFINITY_F64" : "-KUMI_INFINITY");
    print_reduction_loop(s, text(s.begin), text(s.end), is_sum ? added(s) : maximum(s));
  }

  // By chunks that stay in the nearest cache between the loop for their maximum and that for their sum.
  void print_exp_sum(const Stmt& s) {
    constexpr int64_t kChunk = 1024;
    const std::string exp = s.dtype == DType::F64 ? "kumi_exp_f64(" : "kumi_exp(";
    const std::string first = s.variable + "_first", end = s.variable + "_end", before = s.name + "_before",
                      part = s.source + "_part";
    declare(s, s.name, number(lowest(s.dtype), s.dtype));
    declare(s, s.source, "0");
    pragma(dialect_.outer_loop_pragma);
    line("for (" + index_ + " " + first + " = " + text(s.begin) + "; " + first + " < " + text(s.end) + "; " +
         first + concat(" += ", kChunk, ") {"));
    ++depth_;
    const std::string next = first + concat(" + ", kChunk);
    line("const " + index_ + " " + end + " = " + next + " < " + text(s.end) + " ? " + next + " : " +
         text(s.end) + ";");
    line("const " + value_type(s.dtype) + " " + before + " = " + s.name + ";");
    print_reduction_loop(s, first, end, maximum(s));
    declare(s, part, "0");
    print_reduction_loop(s, first, end,
                         part + " += " + exp + text(s.value, precedence("-")) + " - " + s.name + ");");
    line(s.source + " = " + s.source + " * " + exp + before + " - " + s.name + ") + " + part + ";");
    --depth_;
    line("}");
  }

  void declare(const Stmt& s, const std::string& name, const std::string& value) {
    line(value_type(s.dtype) + " " + name + " = " + value + ";");
  }

  std::string added(const Stmt& s) { return s.name + " += " + text(s.value) + ";"; }
  std::string maximum(const Stmt& s) {
    return s.name + " = kumi_max_reduce(" + s.name + ", " + text(s.value) + ");";
  }

  void print_reduction_loop(const Stmt& s, const std::string& begin, const std::string& end,
                            const std::string& step) {
    line("{");
    ++depth_;
    pragma(dialect_.reduction_block_begin);
    pragma(dialect_.reduction_pragma);
    line("for (" + index_ + " " + s.variable + " = " + begin + "; " + s.variable + " < " + end + "; ++" +
         s.variable + ") {");
    ++depth_;
    for (const Stmt& inner : s.body) print(inner);
    line(step);
    --depth_;
    line("}");
    --depth_;
    line("}");
  }

  static std::string number(double value, DType dtype) {
    bool single = dtype != DType::F64;
    if (std::isnan(value)) return single ? "KUMI_NAN" : "KUMI_NAN_F64";
    if (std::isinf(value))
      return std::string(value < 0 ? "(-" : "(") + (single ? "KUMI_INFINITY)" : "KUMI_INFINITY_F64)");
    char buffer[64];
    snprintf(buffer, sizeof buffer, single ? "%.9g" : "%.17g", value);
    std::string spelled = buffer;
    if (spelled.find_first_of(".e") == std::string::npos) spelled += ".0";
    if (single) spelled += "f";
    return value < 0 || std::signbit(value) ? "(" + spelled + ")" : spelled;
  }

  // The expression, in parentheses if its outermost operator binds weaker than `outer`.
  std::string text(const Expr& e, int outer = 0) {
    const ExprNode& node = e.node();
    switch (node.kind) {
      case ExprNode::kInteger: {
        std::string spelled = std::to_string(node.integer);
        return node.integer < 0 ? "(" + spelled + ")" : spelled;
      }
      case ExprNode::kFloat:
        return number(node.number, node.dtype);
      case ExprNode::kVariable:
        return node.name;
      case ExprNode::kLoad: {
        if (node.as_pair) return "((const int*)" + node.name + ")[" + text(node.arguments[0]) + "]";
        std::string load = node.name + "[" + text(node.arguments[0]) + "]";
        auto found = element_types_.find(node.name);
        if (found != element_types_.end() && found->second == DType::BF16)
          return "kumi_from_bf16(" + load + ")";
        if (found != element_types_.end() && found->second == DType::F16) return "(float)" + load;
        return load;
      }
      case ExprNode::kUnary:
        // A nested minus must not become a decrement.
        return node.name + (node.arguments[0].node().kind == ExprNode::kUnary
                                ? "(" + text(node.arguments[0]) + ")"
                                : text(node.arguments[0], kUnaryPrecedence));
      case ExprNode::kBinary: {
        int own = precedence(node.name);
        std::string spelled =
            text(node.arguments[0], own) + " " + node.name + " " + text(node.arguments[1], own + 1);
        return own < outer ? "(" + spelled + ")" : spelled;
      }
      case ExprNode::kCall: {
        std::string arguments;
        for (const Expr& argument : node.arguments)
          arguments += (arguments.empty() ? "" : ", ") + text(argument);
        return node.name + "(" + arguments + ")";
      }
      case ExprNode::kSelect: {
        std::string spelled = text(node.arguments[0], kSelectPrecedence + 1) + " ? " +
                              text(node.arguments[1], kSelectPrecedence + 1) + " : " +
                              text(node.arguments[2], kSelectPrecedence + 1);
        return kSelectPrecedence < outer ? "(" + spelled + ")" : spelled;
      }
      case ExprNode::kCast:
        return "(" + value_type(node.dtype) + ")" + text(node.arguments[0], kUnaryPrecedence + 1);
    }
    return "";
  }

  const KernelProgram& program_;
  const Dialect& dialect_;
  std::map<std::string, DType> element_types_;
  std::string index_;      // the type of indices
  SimtSchedule schedule_;  // of the phase being printed
  std::string out_;
  int depth_ = 0;
};

}  // namespace

Kernel emit(const KernelProgram& program, const Dialect& dialect) {
  if (!dialect.is_simt) return Printer(program, dialect).print();
  return Printer(simt_lowered(program), dialect).print();
}

}  // namespace kumi
