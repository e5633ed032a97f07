// Runs the built `kumi` as a user would: a process of its own, its output caught, with a time limit.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace kumi::testing {

struct CommandOptions {
  // Variables set or replaced. KUMI_CACHE_DIR is the tests' own kernel cache unless given here.
  std::map<std::string, std::string> environment = {};
  std::filesystem::path directory = {};  // to run in; "": that of the test
  std::chrono::seconds time_limit = std::chrono::seconds(240);
  int64_t largest_memory = 0;  // bytes of address space; 0: no limit
};

struct CommandResult {
  int status = -1;  // exit status; -1 if a signal ended it
  int signal = 0;   // that ended it
  bool timed_out = false;
  std::string out;
  std::string err;

  // For messages of tests: how it ended, and all that it printed.
  std::string description() const;
};

// A running process. Destroying it kills it.
class Process {
 public:
  // arguments[0] is the executable's path.
  explicit Process(std::vector<std::string> arguments, CommandOptions options = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Does nothing if it has ended.
  void send(int signal);
  bool has_ended();
  // What it has printed on standard output so far.
  std::string output_so_far() const;
  // Until it ends; kills it when its time is over.
  CommandResult wait();

 private:
  void reap(int options);

  CommandOptions options_;
  std::chrono::steady_clock::time_point start_;
  pid_t pid_ = -1;
  int out_ = -1;  // unlinked files: no reader can block the process
  int err_ = -1;
  bool ended_ = false;
  int wait_status_ = 0;
};

std::filesystem::path kumi_binary();

// `kumi ARGUMENTS...` to its end.
CommandResult run_kumi(const std::vector<std::string>& arguments, const CommandOptions& options = {});

// The arguments with the executable in front, for Process.
std::vector<std::string> kumi_command(const std::vector<std::string>& arguments);

}  // namespace kumi::testing
