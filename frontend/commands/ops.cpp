// `kumi ops`: the registry of ops as a reference.
#include <CLI/CLI.hpp>
#include <cctype>
#include <iostream>
#include <memory>

#include "frontend/commands/commands.h"
#include "graph/op.h"

namespace kumi {
namespace {

constexpr size_t kLineWidth = 100;

// Wraps at spaces; every line begins with `indent`.
std::string wrapped(const std::string& text, const std::string& indent) {
  std::string out, line;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (!line.empty() && indent.size() + line.size() + 1 + word.size() > kLineWidth) {
      out += indent + line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
  }
  return out + indent + line + "\n";
}

// The first sentence, cut off where a line of the list ends.
std::string summary(const std::string& doc, size_t width) {
  std::string text = doc.substr(0, doc.find('\n'));
  for (size_t i = 0; i + 2 < text.size(); ++i)
    if (text[i] == '.' && text[i + 1] == ' ' && std::isupper(static_cast<unsigned char>(text[i + 2])) != 0)
      text.resize(i);
  if (text.ends_with('.')) text.pop_back();
  if (text.size() <= width) return text;
  text.resize(text.rfind(' ', width - 4));
  return text + " ...";
}

std::string signature(const OpDef& op) {
  std::string text = op.name + "(";
  const char* separator = "";
  for (const OperandSpec& operand : op.operands) {
    text += concat(separator, operand.name, operand.variadic ? "..." : operand.optional ? "?" : "");
    separator = ", ";
  }
  for (const AttributeSpec& attribute : op.attributes) {
    text += concat(separator, attribute.name, " = ",
                   attribute.default_value ? to_string(*attribute.default_value) : to_string(attribute.kind));
    separator = ", ";
  }
  return text + ")";
}

void print_op(const OpDef& op) {
  std::cout << signature(op) << "\n\n" << wrapped(op.doc, "  ");
  if (!op.operands.empty()) std::cout << "\noperands\n";
  for (const OperandSpec& operand : op.operands)
    std::cout << wrapped(concat(operand.name, operand.optional ? " (optional)" : "",
                                operand.variadic ? " (one or more)" : "", ": ", operand.doc),
                         "  ");
  if (!op.attributes.empty()) std::cout << "\nattributes\n";
  for (const AttributeSpec& attribute : op.attributes) {
    std::string choices;
    for (const std::string& choice : attribute.choices)
      choices += (choices.empty() ? "" : ", ") + quoted(choice);
    std::cout << wrapped(
        concat(attribute.name, ": ", to_string(attribute.kind), ", ",
               attribute.default_value ? "default " + to_string(*attribute.default_value) : "required",
               choices.empty() ? "" : "; one of " + choices, ". ", attribute.doc),
        "  ");
  }
  std::cout << "\nresults\n";
  for (const std::string& result : op.results) std::cout << "  " << result << "\n";
  std::cout << "\ngradient: " << (op.gradient ? "yes" : "none") << "\n";
}

int list_ops() {
  const std::vector<const OpDef*> ops = all_ops();
  size_t width = 0;
  for (const OpDef* op : ops) width = std::max(width, op->name.size());
  std::string family;
  for (const OpDef* op : ops) {
    if (op->family != family) std::cout << (family.empty() ? "" : "\n") << op->family << "\n";
    family = op->family;
    std::cout << "  " << op->name << std::string(width - op->name.size(), ' ') << "  "
              << summary(op->doc, kLineWidth - width - 4) << "\n";
  }
  return kExitSuccess;
}

}  // namespace

void add_ops_command(CLI::App& app, CommandAction* run) {
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("ops", "Lists the ops of the language, or explains one");
  command->add_option("NAME", *name, "an op; without it all are listed");
  command->footer("Example: kumi ops attention");
  command->callback([run, name] {
    *run = [name] {
      if (name->empty()) return list_ops();
      print_op(op_of(*name));
      return static_cast<int>(kExitSuccess);
    };
  });
}

}  // namespace kumi
