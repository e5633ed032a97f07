// The subcommands of `kumi`, one file each. Adding one declares its options and, when it is the one
// given, leaves in `run` what it does; main calls it after all options are parsed.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace kumi {

// Returns the exit status (ExitCode); throws Error.
using CommandAction = std::function<int()>;

void add_check_command(CLI::App& app, CommandAction* run);
void add_dump_command(CLI::App& app, CommandAction* run);
void add_run_command(CLI::App& app, CommandAction* run);
void add_train_command(CLI::App& app, CommandAction* run);
void add_profile_command(CLI::App& app, CommandAction* run);
void add_generate_command(CLI::App& app, CommandAction* run);
void add_tokenizer_command(CLI::App& app, CommandAction* run);
void add_ops_command(CLI::App& app, CommandAction* run);

}  // namespace kumi
