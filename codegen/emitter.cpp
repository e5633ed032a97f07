#include "codegen/emitter.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include "graph/error.h"

namespace kumi {

const Dialect& host_dialect() {
  static const Dialect dialect = {
      .name = "host C++",
      .function_prefix = "extern \"C\" void ",
      // Iterations are independent: no checks at run time, which would see overlap in the rows of two parts.
      .vector_loop_pragma = "#pragma clang loop vectorize(assume_safety)",
      // Short inner loops are unrolled first; what then remains must not be vectorised across, with a
      // gather for each element.
      .outer_loop_pragma = "#pragma clang loop vectorize(disable)",
      .reduction_block_begin = "#pragma clang fp reassociate(on)",
      .reduction_pragma = "#pragma clang loop vectorize(enable) interleave_count(4)",
      .restrict_keyword = "__restrict",
  };
  return dialect;
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
      return "_Float16";
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

class Printer {
 public:
  Printer(const KernelProgram& program, const Dialect& dialect) : program_(program), dialect_(dialect) {
    for (const BufferParameter& buffer : program.buffers) element_types_[buffer.name] = buffer.dtype;
  }

  Kernel print() {
    Kernel kernel;
    kernel.name = program_.name;
    line("// " + program_.name);
    for (const std::string& comment : program_.comments) line("// " + comment);
    for (size_t i = 0; i < program_.phases.size(); ++i) {
      std::string symbol = program_.name + "_phase" + std::to_string(i);
      print_phase(program_.phases[i], symbol);
      kernel.phases.emplace_back(symbol, program_.phases[i].extent, program_.phases[i].work);
    }
    kernel.buffers = static_cast<int64_t>(program_.buffers.size());
    kernel.source = std::move(out_);
    return kernel;
  }

 private:
  void line(const std::string& text) { out_ += std::string(2 * depth_, ' ') + text + "\n"; }

  void print_phase(const Phase& phase, const std::string& symbol) {
    line("");
    line(dialect_.function_prefix + symbol + "(void* const* buffers, long begin, long end) {");
    ++depth_;
    std::map<std::string, bool> used;
    for (const Stmt& statement : phase.body) mark_used(statement, &used);
    for (size_t i = 0; i < program_.buffers.size(); ++i) {
      const BufferParameter& buffer = program_.buffers[i];
      if (!used[buffer.name]) continue;
      std::string type = std::string(buffer.written ? "" : "const ") + c_type(buffer.dtype) + "*";
      line(type + " " + dialect_.restrict_keyword + " " + buffer.name + " = (" + type + ")buffers[" +
           std::to_string(i) + "];" + (buffer.comment.empty() ? "" : "  // " + buffer.comment));
    }
    print_loop_pragma(phase.loop, phase.body);
    line("for (long " + phase.variable + " = begin; " + phase.variable + " < end; ++" + phase.variable +
         ") {");
    ++depth_;
    for (const Stmt& statement : phase.body) print(statement);
    --depth_;
    line("}");
    --depth_;
    line("}");
  }

  void print_loop_pragma(LoopKind loop, const std::vector<Stmt>& body) {
    if (loop == LoopKind::kVector)
      line(dialect_.vector_loop_pragma);
    else if (has_vector_loop(body))
      line(dialect_.outer_loop_pragma);
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
    if (s.kind == Stmt::kStore) (*used)[s.name] = true;
    for (const Expr* e : {&s.begin, &s.end, &s.index, &s.value}) mark_used(*e, used);
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
        line("for (long " + s.name + " = " + text(s.begin) + "; " + s.name + " < " + text(s.end) + "; ++" +
             s.name + ") {");
        ++depth_;
        for (const Stmt& inner : s.body) print(inner);
        --depth_;
        line("}");
        break;
      case Stmt::kReduce:
        print_reduction(s);
        break;
      case Stmt::kDeclare:
        line(std::string(s.constant ? "const " : "") + c_type(s.dtype) + " " + s.name + " = " +
             text(s.value) + ";");
        break;
      case Stmt::kAssign:
        line(s.name + " = " + text(s.value) + ";");
        break;
      case Stmt::kDeclareArray:
        element_types_[s.name] = s.dtype;
        line("alignas(64) " + std::string(c_type(s.dtype)) + " " + s.name + "[" + std::to_string(s.size) +
             "];");
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
    }
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
         text(lookup.codes_begin) + "), " + text(lookup.count) + ", " + text(lookup.scale) + ", table);");
  }

  void print_code_search(const CodeSearch& search) {
    print_table("boundaries", search.boundaries);
    line("kumi_search(" + search.codes + " + (" + text(search.codes_begin) + "), " + search.x + " + (" +
         text(search.x_begin) + "), " + text(search.count) + ", " + text(search.divisor) + ", boundaries);");
  }

  void print_reduction(const Stmt& s) {
    bool sum = s.reduction == Reduction::kSum;
    std::string initial = sum ? "0" : s.dtype == DType::F64 ? "-__builtin_inf()" : "-__builtin_inff()";
    line(std::string(c_type(s.dtype)) + " " + s.name + " = " + initial + ";");
    line("{");
    ++depth_;
    line(dialect_.reduction_block_begin);
    line(dialect_.reduction_pragma);
    line("for (long " + s.variable + " = " + text(s.begin) + "; " + s.variable + " < " + text(s.end) +
         "; ++" + s.variable + ") {");
    ++depth_;
    for (const Stmt& inner : s.body) print(inner);
    if (sum)
      line(s.name + " += " + text(s.value) + ";");
    else
      line(s.name + " = kumi_max_reduce(" + s.name + ", " + text(s.value) + ");");
    --depth_;
    line("}");
    --depth_;
    line("}");
  }

  static std::string number(double value, DType dtype) {
    bool single = dtype != DType::F64;
    if (std::isnan(value)) return single ? "__builtin_nanf(\"\")" : "__builtin_nan(\"\")";
    if (std::isinf(value))
      return std::string(value < 0 ? "(-" : "(") + (single ? "__builtin_inff())" : "__builtin_inf())");
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
        return "(" + std::string(c_type(node.dtype)) + ")" + text(node.arguments[0], kUnaryPrecedence + 1);
    }
    return "";
  }

  const KernelProgram& program_;
  const Dialect& dialect_;
  std::map<std::string, DType> element_types_;
  std::string out_;
  int depth_ = 0;
};

}  // namespace

Kernel emit(const KernelProgram& program, const Dialect& dialect) {
  return Printer(program, dialect).print();
}

}  // namespace kumi
