#include "runtime/atomic_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <random>
#include <system_error>
#include <utility>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

constexpr int kNewFileMode = 0666;       // less the umask
constexpr int kNewDirectoryMode = 0777;  // less the umask
constexpr int kTemporaryNameTries = 100;

Error system_error(const std::string& what, const fs::path& path, int code = errno) {
  Error error(concat(what, ": ", std::generic_category().message(code)));
  error.at({path.string()});
  return error;
}

std::string random_suffix() {
  static constexpr char kLetters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::random_device random;
  std::string suffix = ".tmp-";
  for (int i = 0; i < 8; ++i) suffix += kLetters[random() % 36];
  return suffix;
}

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// "a/b/" names the directory b as "a/b" does, but its temporary must not lie inside it.
fs::path without_trailing_slash(fs::path path) {
  if (!path.empty() && !path.has_filename()) path = path.parent_path();
  if (path.empty()) throw Error("cannot write: the path is empty");
  return path;
}

// Some file systems cannot sync a directory and say EINVAL; there is nothing more to do then.
void sync_path(const fs::path& path, int flags) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
  if (descriptor < 0) throw system_error("cannot open to sync", path);
  int failure = fsync(descriptor) == 0 ? 0 : errno;
  close(descriptor);
  if (failure != 0 && failure != EINVAL) throw system_error("cannot sync to disk", path, failure);
}

void sync_directory(const fs::path& path) {
  sync_path(path, O_DIRECTORY);
}

// Opens a regular file and tells its size.
int open_to_read(const fs::path& path, size_t* size) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not block here
  if (descriptor < 0) throw system_error("cannot open", path);
  struct stat status;
  if (fstat(descriptor, &status) != 0) {
    int failure = errno;
    close(descriptor);
    throw system_error("cannot read", path, failure);
  }
  if (!S_ISREG(status.st_mode)) {
    close(descriptor);
    throw Error("cannot read: not a regular file").at({path.string()});
  }
  *size = static_cast<size_t>(status.st_size);
  return descriptor;
}

}  // namespace

AtomicFile::AtomicFile(fs::path target) : target_(std::move(target)) {
  if (!target_.has_filename()) throw Error("cannot write: not a file name").at({target_.string()});
  for (int attempt = 0; attempt < kTemporaryNameTries; ++attempt) {
    temporary_ = target_.string() + random_suffix();
    descriptor_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, kNewFileMode);
    if (descriptor_ >= 0 || errno != EEXIST) break;
  }
  if (descriptor_ < 0) throw system_error("cannot create", target_);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

void AtomicFile::write(const void* data, size_t bytes) {
  write_at(size_, data, bytes);
}

void AtomicFile::write_at(uint64_t offset, const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    ssize_t written = pwrite(descriptor_, next, bytes, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      throw system_error("cannot write", target_);
    }
    next += written;
    bytes -= static_cast<size_t>(written);
    offset += static_cast<uint64_t>(written);
    if (offset > size_) size_ = offset;
  }
}

void AtomicFile::commit() {
  if (fsync(descriptor_) != 0) throw system_error("cannot sync to disk", target_);
  // Network file systems report a full disk only here.
  if (close(std::exchange(descriptor_, -1)) != 0) throw system_error("cannot write", target_);
  if (rename(temporary_.c_str(), target_.c_str()) != 0) throw system_error("cannot create", target_);
  temporary_.clear();
  sync_directory(parent_of(target_));
}

void write_file_atomically(const fs::path& target, std::string_view contents) {
  AtomicFile file(target);
  file.write(contents);
  file.commit();
}

AtomicDirectory::AtomicDirectory(fs::path target) : target_(without_trailing_slash(std::move(target))) {
  int result = -1;
  for (int attempt = 0; attempt < kTemporaryNameTries; ++attempt) {
    temporary_ = target_.string() + random_suffix();
    result = mkdir(temporary_.c_str(), kNewDirectoryMode);
    if (result == 0 || errno != EEXIST) break;
  }
  if (result != 0) throw system_error("cannot create", target_);
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

AtomicDirectory::AtomicDirectory(AtomicDirectory&& other) noexcept
    : target_(std::move(other.target_)), temporary_(std::exchange(other.temporary_, {})) {}

void AtomicDirectory::commit() {
  try {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(temporary_)) {
      if (entry.is_symlink()) continue;  // synced with the directory that holds it
      if (entry.is_regular_file()) sync_path(entry.path(), 0);
      if (entry.is_directory()) sync_directory(entry.path());
    }
  } catch (const fs::filesystem_error& error) {
    throw system_error("cannot sync to disk", target_, error.code().value());
  }
  sync_directory(temporary_);
  if (rename(temporary_.c_str(), target_.c_str()) == 0) {
    temporary_.clear();
  } else if (errno == ENOTEMPTY || errno == EEXIST) {
    // The exchange is one step: at every moment the target is the old directory or the new one.
    if (renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0)
      throw system_error("cannot replace the existing directory", target_).hint("remove it first");
    sync_directory(parent_of(target_));
    std::error_code ignored;
    fs::remove_all(std::exchange(temporary_, {}), ignored);
  } else {
    throw system_error("cannot create", target_);
  }
  sync_directory(parent_of(target_));
}

AppendFile::AppendFile(fs::path path, Mode mode) : path_(std::move(path)) {
  int flags = mode == Mode::NEW ? O_EXCL : mode == Mode::REPLACE ? O_TRUNC : 0;
  descriptor_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | flags, kNewFileMode);
  if (descriptor_ < 0) throw system_error("cannot create", path_);
  struct stat status;
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(descriptor_);
    throw Error("cannot write: not a regular file").at({path_.string()});
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

AppendFile::~AppendFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

AppendFile::AppendFile(AppendFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_) {}

AppendFile& AppendFile::operator=(AppendFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  return *this;
}

void AppendFile::append(std::string_view record) {
  std::string_view rest = record;
  while (!rest.empty()) {
    ssize_t written = ::write(descriptor_, rest.data(), rest.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      int failure = errno;
      // Half a record would make the ones behind it unreadable.
      if (rest.size() < record.size() && ftruncate(descriptor_, static_cast<off_t>(size_)) != 0)
        throw system_error("cannot take back an unfinished record", path_);
      throw system_error("cannot write", path_, failure);
    }
    rest.remove_prefix(static_cast<size_t>(written));
  }
  size_ += record.size();
}

void AppendFile::truncate(uint64_t size) {
  if (ftruncate(descriptor_, static_cast<off_t>(size)) != 0) throw system_error("cannot truncate", path_);
  size_ = size;
}

std::string read_file(const fs::path& path) {
  size_t size = 0;
  int descriptor = open_to_read(path, &size);
  std::string contents(size, '\0');
  size_t filled = 0;
  for (;;) {
    // The file may have grown or shrunk meanwhile; what read() says at the end counts.
    if (filled == contents.size()) contents.resize(contents.size() + 4096);
    ssize_t count = read(descriptor, contents.data() + filled, contents.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      int failure = errno;
      close(descriptor);
      throw system_error("cannot read", path, failure);
    }
    if (count == 0) break;
    filled += static_cast<size_t>(count);
  }
  close(descriptor);
  contents.resize(filled);
  return contents;
}

MappedFile::MappedFile(fs::path path) : path_(std::move(path)) {
  int descriptor = open_to_read(path_, &size_);
  if (size_ == 0) {
    close(descriptor);
    return;
  }
  void* memory = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
  int failure = errno;
  close(descriptor);  // the mapping keeps the file
  if (memory == MAP_FAILED) throw system_error("cannot map into memory", path_, failure);
  data_ = static_cast<const std::byte*>(memory);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release_pages(size_t begin, size_t size) const {
  if (begin >= size_) return;
  madvise(const_cast<std::byte*>(data_) + begin, std::min(size, size_ - begin), MADV_DONTNEED);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace kumi
