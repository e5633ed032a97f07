#include "tests/support/run_command.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <thread>

extern char** environ;

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

std::vector<std::string> environment_with(std::map<std::string, std::string> changes) {
  changes.emplace("KUMI_CACHE_DIR", std::string(KUMI_BINARY_DIR) + "/test_kernel_cache");
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

// Between fork and exec only what is safe there.
[[noreturn]] void become(char* const* arguments, char* const* environment, const char* directory,
                         int64_t largest_memory, int out, int err) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  if (largest_memory > 0) {
    const rlimit memory = {static_cast<rlim_t>(largest_memory), static_cast<rlim_t>(largest_memory)};
    setrlimit(RLIMIT_AS, &memory);
  }
  const int nothing = open("/dev/null", O_RDONLY);
  dup2(nothing, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  if (*directory != '\0' && chdir(directory) != 0) _exit(126);
  execve(arguments[0], arguments, environment);
  _exit(127);
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
  std::vector<std::string> variables = environment_with(options_.environment);
  const std::vector<char*> argument_pointers = pointers(arguments);
  const std::vector<char*> variable_pointers = pointers(variables);
  const std::string directory = options_.directory.string();
  pid_ = fork();
  if (pid_ < 0) throw std::runtime_error("cannot fork");
  if (pid_ == 0)
    become(argument_pointers.data(), variable_pointers.data(), directory.c_str(), options_.largest_memory,
           out_, err_);
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
