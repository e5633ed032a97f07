// The command `kumi`: parses the command line, runs one subcommand, prints errors.
#include <CLI/CLI.hpp>
#include <iostream>
#include <new>

#include "frontend/commands/commands.h"
#include "graph/error.h"
#include "ops/all_ops.h"

namespace {

int run(int argc, char** argv) {
  CLI::App app{"Kumi trains language models from a graph description.", "kumi"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "kumi 0.1.0");
  app.footer("kumi COMMAND --help shows a command's options and an example.");
  kumi::CommandAction action;
  kumi::add_check_command(app, &action);
  kumi::add_dump_command(app, &action);
  kumi::add_run_command(app, &action);
  kumi::add_train_command(app, &action);
  kumi::add_profile_command(app, &action);
  kumi::add_generate_command(app, &action);
  kumi::add_tokenizer_command(app, &action);
  kumi::add_ops_command(app, &action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kumi::kExitSuccess : kumi::kExitUsage;
  }
  kumi::register_all_ops();
  return action();
}

int failed(const char* message) {
  std::cout.flush();
  std::cerr << "kumi: error: " << message << std::endl;
  return kumi::kExitError;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int status = run(argc, argv);
    std::cout.flush();
    return std::cout ? status : failed("the output could not be written");
  } catch (const kumi::Error& error) {
    return failed(error.what());
  } catch (const std::bad_alloc&) {
    return failed("out of memory");
  } catch (const std::exception& error) {
    return failed(kumi::concat("unexpected: ", error.what()).c_str());
  } catch (...) {
    return failed("unexpected: an exception of an unknown type");
  }
}
