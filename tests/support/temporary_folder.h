// A folder of its own for a test, removed with all that is in it when the test is over.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace kumi::testing {

class TemporaryFolder {
 public:
  // Makes an empty folder below the system's folder for temporary files.
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

  // Writes a file below the folder, making the folders on the way; returns its path.
  std::filesystem::path write(const std::string& name, std::string_view contents) const;

  // Names of all files and folders below, relative and sorted.
  std::string listing() const;

 private:
  std::filesystem::path path_;
};

}  // namespace kumi::testing
