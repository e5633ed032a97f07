#include "tests/support/run_command.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace kumi::testing {
namespace {

namespace fs = std::filesystem;

int unlinked_file() {
  std::string pattern = (fs::temp_directory_path() / "kumi-output-XXXXXX").string();
  const int descriptor = mkostemp(pattern.data(), O_CLOEXEC);
  if (descriptor < 0) throw std::runtime_error("cannot make a temporary file");
  unlink(pattern.c_str());
  return descriptor;
}

std::string contents(int descriptor) {
  std::string text;
  char block[4096];
  for (;;) {
    const ssize_t bytes = pread(descriptor, block, sizeof block, static_cast<off_t>(text.size()));
    if (bytes <= 0) return text;
    text.append(block, static_cast<size_t>(bytes));
  }
}

// For builds with the address sanitizer: what it finds must not look like an error of ours, and leaks
// are not looked for where the CPU device is opened (leak_check.cpp).
std::string sanitizer_options(const std::vector<std::string>& arguments) {
  const std::string command = arguments.size() > 1 ? arguments[1] : "";
  const bool opens_device = command != "check" && command != "dump" && command != "tokenizer";
  return std::string("exitcode=99") + (opens_device ? ":detect_leaks=0" : "");
}

std::vector<std::string> environment_with(const std::map<std::string, std::string>& changes) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    if (changes.count(text.substr(0, text.find('='))) == 0) variables.push_back(text);
  }
  for (const auto& [name, value] : changes) variables.push_back(name + "=" + value);
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (std::string& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

// A limit of this process while the object lives, for a child to inherit.
class InheritedLimit {
 public:
  // Nothing is changed if `bytes` is negative.
  InheritedLimit(decltype(RLIMIT_AS) resource, int64_t bytes) : resource_(resource), bytes_(bytes) {
    if (bytes_ < 0) return;
    getrlimit(resource_, &before_);
    rlimit limit = before_;
    limit.rlim_cur = std::min<rlim_t>(static_cast<rlim_t>(bytes_), before_.rlim_max);
    setrlimit(resource_, &limit);
  }
  ~InheritedLimit() {
    if (bytes_ >= 0) setrlimit(resource_, &before_);
  }
  InheritedLimit(const InheritedLimit&) = delete;
  InheritedLimit& operator=(const InheritedLimit&) = delete;

 private:
  decltype(RLIMIT_AS) resource_;
  int64_t bytes_;
  rlimit before_ = {};
};

// By posix_spawn: fork would copy the page tables of this process, which are large under a sanitizer.
pid_t spawn(const std::vector<char*>& arguments, const std::vector<char*>& environment,
            const CommandOptions& options, int out, int err) {
  const InheritedLimit no_core(RLIMIT_CORE, 0);
  const InheritedLimit memory(RLIMIT_AS, options.largest_memory > 0 ? options.largest_memory : -1);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
  if (!options.directory.empty()) posix_spawn_file_actions_addchdir_np(&actions, options.directory.c_str());
  pid_t pid = -1;
  const int failure =
      posix_spawn(&pid, arguments[0], &actions, nullptr, arguments.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  if (failure != 0) throw std::runtime_error(std::string("cannot run ") + arguments[0]);
  return pid;
}

}  // namespace

std::string CommandResult::description() const {
  std::ostringstream text;
  if (timed_out)
    text << "ran out of time";
  else if (signal != 0)
    text << "ended by signal " << signal << " (" << strsignal(signal) << ")";
  else
    text << "exit status " << status;
  text << "\nstandard output:\n" << out << "\nstandard error:\n" << err;
  return text.str();
}

Process::Process(std::vector<std::string> arguments, CommandOptions options)
    : options_(std::move(options)), start_(std::chrono::steady_clock::now()) {
  out_ = unlinked_file();
  err_ = unlinked_file();
  std::map<std::string, std::string> changes = options_.environment;
  changes.emplace("KUMI_CACHE_DIR", std::string(KUMI_BINARY_DIR) + "/test_kernel_cache");
  changes.emplace("ASAN_OPTIONS", sanitizer_options(arguments));
  std::vector<std::string> variables = environment_with(changes);
  pid_ = spawn(pointers(arguments), pointers(variables), options_, out_, err_);
}

Process::~Process() {
  if (!ended_) {
    kill(pid_, SIGKILL);
    reap(0);
  }
  close(out_);
  close(err_);
}

void Process::reap(int options) {
  if (!ended_ && waitpid(pid_, &wait_status_, options) == pid_) ended_ = true;
}

bool Process::has_ended() {
  reap(WNOHANG);
  return ended_;
}

void Process::send(int signal) {
  if (!has_ended()) kill(pid_, signal);
}

std::string Process::output_so_far() const {
  return contents(out_);
}

CommandResult Process::wait() {
  CommandResult result;
  while (!has_ended()) {
    if (std::chrono::steady_clock::now() - start_ > options_.time_limit) {
      result.timed_out = true;
      kill(pid_, SIGKILL);
      reap(0);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (WIFEXITED(wait_status_)) result.status = WEXITSTATUS(wait_status_);
  if (WIFSIGNALED(wait_status_)) result.signal = WTERMSIG(wait_status_);
  result.out = contents(out_);
  result.err = contents(err_);
  return result;
}

fs::path kumi_binary() {
  return fs::path(KUMI_BINARY_DIR) / "kumi";
}

std::vector<std::string> kumi_command(const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {kumi_binary().string()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

CommandResult run_kumi(const std::vector<std::string>& arguments, const CommandOptions& options) {
  return Process(kumi_command(arguments), options).wait();
}

}  // namespace kumi::testing
