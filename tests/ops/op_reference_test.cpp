// docs/ops.md is the registry of ops as text, docs/passes.md the pipeline's table; both are generated
// here. The tests fail if a file is not what is generated, and with KUMI_UPDATE_DOCS set write it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "graph/op.h"
#include "graph/pipeline.h"
#include "ops/all_ops.h"

namespace kumi {
namespace {

constexpr size_t kLineWidth = 110;

// Breaks at spaces; lines after the first are indented.
std::string wrapped(const std::string& text, const std::string& indent = "") {
  std::string out, line;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (!line.empty() && line.size() + 1 + word.size() > kLineWidth) {
      out += line + "\n";
      line = indent + word;
    } else {
      line += (line.empty() ? "" : " ") + word;
    }
  }
  return out + line + "\n";
}

// Markdown takes stars for emphasis or list items, and < for the begin of a tag.
std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) out += c == '*' || c == '<' ? std::string("\\") + c : std::string(1, c);
  return out;
}

std::string code(const std::string& text) {
  return "`" + text + "`";
}

std::string signature(const OpDef& op) {
  std::string text;
  for (const OperandSpec& operand : op.operands)
    text += concat(text.empty() ? "" : ", ", operand.name, operand.variadic ? ", ..." : "");
  for (const AttributeSpec& attribute : op.attributes)
    text += concat(text.empty() ? "" : ", ", attribute.name,
                   attribute.default_value ? " = " + to_string(*attribute.default_value) : "");
  return concat(op.name, "(", text, ")");
}

std::string fusion_text(const OpDef& op) {
  if (op.is_state_access) return "nothing runs: memory is planned so that values are in their place";
  if (op.is_view) return "a view: nothing runs";
  if (op.matmul) return "a call of the device's library";
  if (op.collective) return "by a communicator, beside the nodes that follow";
  if (op.fusion_of) return "as a row op, a column op or a kernel of its own, after its attributes";
  switch (op.fusion) {
    case Fusion::kOpaque:
      return "a kernel of its own";
    case Fusion::kPointwise:
      return "element by element";
    case Fusion::kIndexing:
      return "picks elements: reads from memory or from what is computed element by element";
    case Fusion::kRow:
      return "row by row over the last axis";
    case Fusion::kColumn:
      return "sums over leading axes; ends a kernel";
  }
  return "";
}

std::string text_of(const OpDef& op) {
  std::string text =
      concat("### ", op.name, "\n\n", code(signature(op)), "\n\n", wrapped(escaped(op.doc)), "\n");
  for (const OperandSpec& operand : op.operands)
    text += wrapped(concat("- ", code(operand.name), operand.optional ? " (optional)" : "",
                           operand.variadic ? " (one or more)" : "", ": ", escaped(operand.doc)),
                    "  ");
  for (const AttributeSpec& attribute : op.attributes) {
    std::string choices;
    for (const std::string& choice : attribute.choices)
      choices += (choices.empty() ? "; one of " : ", ") + code(quoted(choice));
    std::string given =
        attribute.default_value ? "default " + code(to_string(*attribute.default_value)) : "must be given";
    text += wrapped(concat("- attribute ", code(attribute.name), " (", to_string(attribute.kind), ", ", given,
                           choices, "): ", escaped(attribute.doc)),
                    "  ");
  }
  std::string results;
  for (const std::string& result : op.results) results += (results.empty() ? "" : ", ") + code(result);
  text += concat("- results: ", results.empty() ? "none" : results, "\n");
  text += concat("- fusion: ", fusion_text(op), "\n");
  text += concat("- gradient: ", op.gradient ? "yes" : "none", "\n\n");
  return text;
}

std::string op_reference() {
  std::string text =
      "# Ops\n\n"
      "<!-- Generated from the registry by tests/ops/op_reference_test.cpp; KUMI_UPDATE_DOCS=1 rewrites it. "
      "-->\n\n" +
      wrapped(
          "Every op that a graph may consist of, by family. An operand's shape is written as in the "
          "language, `[..., n]` being any leading axes and a last one of size n. Element-wise ops "
          "broadcast as NumPy does: shapes are compared from the last axis on, and sizes must be equal or "
          "1. Nothing is converted silently: operands of one element-wise op have one element type. Axes "
          "count from 0; negative ones count from the end, -1 being the last. Ops whose name ends in "
          "`_grad` are built by gradient rules.") +
      "\n";
  std::string family;
  for (const OpDef* op : all_ops()) {
    if (op->family != family) text += concat("## ", op->family, "\n\n");
    family = op->family;
    text += text_of(*op);
  }
  text.pop_back();
  return text;
}

std::string pass_reference() {
  std::string text =
      "# Passes\n\n"
      "<!-- Generated from graph/pipeline.cpp by tests/ops/op_reference_test.cpp; KUMI_UPDATE_DOCS=1 "
      "rewrites "
      "it. -->\n\n" +
      wrapped(
          "The way from a model to a plan: each pass takes the module that the one before it left, and "
          "what it establishes holds for all later ones. The verifier runs after each. `kumi dump MODEL "
          "--all DIR` writes the module after every pass.") +
      "\n";
  int number = 0;
  for (const Pass& pass : pipeline()) {
    text += concat("## ", ++number, ". ", pass.name, "\n\n", wrapped(escaped(pass.doc)), "\n");
    text += wrapped("- needs: " + escaped(pass.needs), "  ");
    text += wrapped("- establishes: " + escaped(pass.establishes), "  ") + "\n";
  }
  text.pop_back();
  return text;
}

void expect_file(const std::string& name, const std::string& wanted) {
  std::filesystem::path path = std::filesystem::path(KUMI_SOURCE_DIR) / "docs" / name;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream found;
  found << file.rdbuf();
  if (found.str() == wanted) return;
  if (std::getenv("KUMI_UPDATE_DOCS") != nullptr) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << wanted;
    return;
  }
  std::istringstream found_lines(found.str()), wanted_lines(wanted);
  int number = 1;
  std::string found_line, wanted_line;
  while (std::getline(found_lines, found_line) && std::getline(wanted_lines, wanted_line) &&
         found_line == wanted_line)
    ++number;
  ADD_FAILURE() << "docs/" << name << " is not what is generated; the first difference is in line " << number
                << ". Run this test with KUMI_UPDATE_DOCS=1 and look at the change.";
}

TEST(OpReference, IsUpToDate) {
  register_all_ops();
  expect_file("ops.md", op_reference());
}

TEST(PassReference, IsUpToDate) {
  expect_file("passes.md", pass_reference());
}

}  // namespace
}  // namespace kumi
