// Files that are either whole or absent.
//
// A writer fills a temporary beside its target, syncs it to disk and renames it over the target;
// the rename is the only moment of change, so a reader (or a resumed run after a power cut) sees
// the old contents or the new, never a part. A writer that is destroyed without commit(), as an
// exception does, removes its temporary. Directories are published the same way; logs, which grow,
// take whole records. Reading is here too: a whole file as a string, or mapped into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace kumi {

// One file being written. Every function throws Error naming the target and the system's reason
// (disk full, no permission, ...).
class AtomicFile {
 public:
  // Creates the temporary `PATH.tmp-xxxxxxxx`; the target's directory must exist.
  explicit AtomicFile(std::filesystem::path target);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  AtomicFile& operator=(AtomicFile&&) = delete;

  // Appends to what was written so far.
  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }

  // Writes at an offset in bytes, before or after size(); a gap reads as zeros. Grows size().
  void write_at(uint64_t offset, const void* data, size_t bytes);

  // Bytes so far: where write() continues.
  uint64_t size() const { return size_; }
  const std::filesystem::path& target() const { return target_; }

  // Syncs, renames over the target, syncs the directory. Nothing may be written afterwards.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

// The same for contents that are already in memory.
void write_file_atomically(const std::filesystem::path& target, std::string_view contents);

// A directory being written. Files are created below path() by any means, also by other
// processes that were told path(); commit() syncs all of them and renames the directory to the target.
class AtomicDirectory {
 public:
  // Creates the temporary `TARGET.tmp-xxxxxxxx`; the target's parent must exist.
  explicit AtomicDirectory(std::filesystem::path target);
  ~AtomicDirectory();
  AtomicDirectory(AtomicDirectory&& other) noexcept;
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(AtomicDirectory&&) = delete;

  // The temporary directory to write into; empty after commit().
  const std::filesystem::path& path() const { return temporary_; }
  const std::filesystem::path& target() const { return target_; }

  // Publishes. An existing target directory is exchanged in one step and then removed.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
};

// A file that grows by whole records: a record that cannot be written completely is taken back.
class AppendFile {
 public:
  enum class Mode {
    NEW,       // must not exist
    REPLACE,   // emptied if it exists
    CONTINUE,  // created if it does not exist
  };
  AppendFile(std::filesystem::path path, Mode mode);
  ~AppendFile();
  AppendFile(AppendFile&& other) noexcept;
  AppendFile& operator=(AppendFile&& other) noexcept;
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Hands the record to the system in one write.
  void append(std::string_view record);

  // Cuts the file off after `size` bytes.
  void truncate(uint64_t size);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

// The whole contents. Throws Error if the file is missing, unreadable or not a regular file.
std::string read_file(const std::filesystem::path& path);

// A file mapped read-only. The memory stays valid, and at the same address, while this object or
// the one it was moved to lives. An empty file has size 0 and data nullptr.
class MappedFile {
 public:
  MappedFile() = default;
  // Throws as read_file does.
  explicit MappedFile(std::filesystem::path path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  const std::filesystem::path& path() const { return path_; }

  // Takes bytes out of the process's memory; they are read again when they are used. `begin` is a
  // multiple of the system's page size.
  void release_pages(size_t begin, size_t size) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace kumi
