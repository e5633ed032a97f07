// `kumi dump`: the graph at any stage of the plan, as text, protobuf or drawing.
//
// Plans without a device: nothing is allocated and no kernel compiled, so that the plan of a model
// of any size is seen on any machine.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>

#include "codegen/cuda/kernel_report.h"
#include "codegen/plan.h"
#include "frontend/commands/commands.h"
#include "frontend/commands/model_argument.h"
#include "frontend/files.h"
#include "frontend/human.h"
#include "frontend/language/print.h"
#include "graph/dot.h"
#include "graph/serialize.h"
#include "runtime/atomic_file.h"
#include "runtime/open_cuda_compiler.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

struct DumpOptions {
  ModelArgument model;
  std::string after, directory, format, goal, output, device, architecture;
  bool unfold = false, verbose = false, keep_outputs = false;
};

const std::vector<std::string> kFormats = {"text", "pb", "txtpb", "dot"};
const std::map<std::string, Goal> kGoals = {{"forward", Goal::kForward},
                                            {"gradient", Goal::kGradient},
                                            {"train", Goal::kTrain},
                                            {"decode", Goal::kDecode}};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string time_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%8.3f s", seconds);
  return text;
}

std::string rendered(const Module& module, const std::string& format, bool folded) {
  if (format == "pb") return to_binary(module);
  if (format == "txtpb") return to_text_format(module);
  if (format == "dot") return to_dot(module);
  return folded ? print_folded(module) : print_module(module);
}

std::string rendered(const Plan& plan, const std::string& format, bool folded) {
  if (format == "pb") return plan_to_binary(plan);
  if (format == "txtpb") return plan_to_text_format(plan);
  if (format == "dot") return to_dot(plan.module);
  return rendered(plan.module, format, folded) + "\n" + print_plan(plan);
}

std::string compiled_report(const Plan& plan, const std::string& architecture) {
  CompileStatistics statistics;
  const auto binaries = open_cuda_compiler()->compile(plan.kernels, architecture, &statistics);
  return cuda_kernel_report(plan, binaries, architecture, statistics);
}

size_t position_of(const std::string& pass) {
  const std::vector<Pass>& passes = pipeline();
  return static_cast<size_t>(&find_pass(pass) - passes.data());
}

// A dump that is past a stage cannot be shown as it was there.
void check_not_past(const Module& module, const std::string& after) {
  for (const std::string& pass : module.passes)
    if (position_of(pass) > position_of(after))
      throw Error(concat("the module is past the pass '", after, "' already: '", pass, "' has run"))
          .hint("start from the model's source, or from an earlier dump");
}

OpenedModel open(const DumpOptions& options, bool keep_places) {
  std::optional<Goal> goal;
  if (!options.goal.empty()) goal = kGoals.at(options.goal);
  OpenedModel opened = open_model(options.model, goal, keep_places);
  opened.options.keep_outputs = options.keep_outputs;
  return opened;
}

// `00-source.kumi`, `01-infer.kumi`, ...: numbers are places in the table of passes.
std::string file_name(size_t number, const std::string& stage, const std::string& format) {
  char digits[8];
  std::snprintf(digits, sizeof digits, "%02zu", number);
  return concat(digits, "-", stage, ".", format == "text" ? "kumi" : format);
}

int dump_all(const DumpOptions& options) {
  make_directories(options.directory);
  auto start = std::chrono::steady_clock::now();
  OpenedModel opened = open(options, false);
  const fs::path folder = options.directory;
  auto write = [&](size_t number, const std::string& stage, const Module& module, const std::string& contents,
                   double seconds) {
    const std::string name = file_name(number, stage, options.format);
    write_file_atomically(folder / name, contents);
    size_t nodes = 0;
    for (const Graph& graph : module.graphs) nodes += graph.nodes.size();
    std::cout << name << std::string(name.size() < 20 ? 20 - name.size() : 0, ' ') << time_text(seconds)
              << "  " << with_thousands(static_cast<int64_t>(nodes)) << " nodes\n"
              << std::flush;
  };
  const double loading = seconds_since(start);
  write(0, "source", opened.module, rendered(opened.module, options.format, false), loading);
  const Dialect& dialect = dialect_of(options.device.empty() ? opened.device : options.device);
  Module module = run_pipeline(
      std::move(opened.module), opened.options, "", [&](const Pass& pass, const Module& now, double seconds) {
        write(position_of(pass.name) + 1, pass.name, now, rendered(now, options.format, false), seconds);
      });
  start = std::chrono::steady_clock::now();
  const Plan plan = make_plan(std::move(module), dialect);
  const double generating = seconds_since(start);
  write(position_of("codegen") + 1, "codegen", plan.module, rendered(plan, options.format, false),
        generating);
  return kExitSuccess;
}

int dump_one(const DumpOptions& options) {
  const bool to_terminal = options.output.empty() && isatty(STDOUT_FILENO) != 0;
  if (to_terminal && options.format == "pb")
    throw Error("the binary format cannot be shown on a terminal").hint("write it to a file with -o FILE");
  if (!options.output.empty()) check_output_file(options.output);
  auto start = std::chrono::steady_clock::now();
  OpenedModel opened = open(options, options.after.empty());
  auto report = [&](const std::string& stage, double seconds) {
    if (options.verbose) std::cerr << time_text(seconds) << "  " << stage << "\n";
  };
  report("source", seconds_since(start));
  const Dialect& dialect = dialect_of(options.device.empty() ? opened.device : options.device);
  Module module = std::move(opened.module);
  if (!options.after.empty()) {
    check_not_past(module, options.after);
    module =
        run_pipeline(std::move(module), opened.options, options.after == "codegen" ? "" : options.after,
                     [&](const Pass& pass, const Module&, double seconds) { report(pass.name, seconds); });
  }
  const bool folded = to_terminal && !options.unfold;
  std::string contents;
  if (options.after == "codegen") {
    start = std::chrono::steady_clock::now();
    const Plan plan = make_plan(std::move(module), dialect);
    report("codegen", seconds_since(start));
    contents = rendered(plan, options.format, folded);
    if (!options.architecture.empty()) contents += compiled_report(plan, options.architecture);
  } else {
    contents = rendered(module, options.format, folded);
  }
  if (options.output.empty())
    std::cout.write(contents.data(), static_cast<std::streamsize>(contents.size()));
  else
    write_file_atomically(options.output, contents);
  return kExitSuccess;
}

int dump(DumpOptions options) {
  if (!options.after.empty()) find_pass(options.after);
  if (!options.architecture.empty() && (options.after != "codegen" || !dialect_of(options.device).is_simt))
    throw Error("--architecture is about CUDA kernels").hint("give --after codegen --device cuda, too");
  if (options.format.empty()) {
    const std::string extension = fs::path(options.output).extension();
    const bool known = extension.size() > 1 &&
                       std::find(kFormats.begin(), kFormats.end(), extension.substr(1)) != kFormats.end();
    options.format = known ? extension.substr(1) : "text";
  }
  return options.directory.empty() ? dump_one(options) : dump_all(options);
}

std::string pass_list() {
  std::string text;
  for (const Pass& pass : pipeline()) text += (text.empty() ? "" : ", ") + pass.name;
  return text;
}

}  // namespace

void add_dump_command(CLI::App& app, CommandAction* run) {
  auto options = std::make_shared<DumpOptions>();
  CLI::App* command =
      app.add_subcommand("dump", "Prints the graph of a model or recipe at any stage of its plan");
  add_model_argument(command, &options->model);
  CLI::Option* after =
      command->add_option("--after", options->after, "the stage: " + pass_list() + "; without it the source")
          ->type_name("PASS");
  CLI::Option* all =
      command
          ->add_option(
              "--all", options->directory,
              "writes a file for each stage that does something, numbered in the order of passes, and "
              "prints the time each took")
          ->type_name("DIR")
          ->excludes(after);
  command
      ->add_option("--format", options->format,
                   "text (default), pb, txtpb or dot; without it that of FILE's extension")
      ->check(CLI::IsMember(kFormats));
  command
      ->add_option("--goal", options->goal,
                   "what is planned: forward, gradient, train or decode (writing text, token by token); "
                   "default: train "
                   "if there is an output `loss`")
      ->check(CLI::IsMember({"forward", "gradient", "train", "decode"}));
  command->add_option("--device", options->device,
                      "whose kernels codegen writes: cpu, cuda or cuda_emu; default: the recipe's, or cpu");
  command
      ->add_option(
          "--architecture", options->architecture,
          "after codegen: compiles the CUDA kernels for a GPU such as sm_80 or sm_90a and adds what each "
          "takes of it; no GPU is needed")
      ->needs(after);
  command->add_flag("--keep-outputs", options->keep_outputs,
                    "keeps the model's other outputs (logits) in a training step");
  command->add_flag("--unfold", options->unfold, "all layers, also on a terminal");
  command->add_flag("--verbose", options->verbose, "prints the time of each pass on standard error");
  command->add_option("-o,--output", options->output, "writes to FILE")->type_name("FILE")->excludes(all);
  command->footer(
      "Every form but dot and the folded text reads back as a MODEL and gives the same graph. Text is\n"
      "folded, with only the first of equal layers, where standard output is a terminal; --unfold, -o\n"
      "and pipes get the whole. After codegen the text ends with launches and kernels as comments.\n"
      "Example: kumi dump models/plamo.kumi --after fuse --set model.layers=2 --size seq=128");
  command->callback([run, options] { *run = [options] { return dump(*options); }; });
}

}  // namespace kumi
