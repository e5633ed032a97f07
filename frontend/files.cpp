#include "frontend/files.h"

#include <unistd.h>

#include "graph/error.h"

namespace kumi {

namespace fs = std::filesystem;

void make_directories(const fs::path& path) {
  std::error_code failure;
  fs::create_directories(path, failure);
  if (failure) throw Error("cannot create the folder: " + failure.message()).at({path});
}

void check_output_file(const fs::path& path) {
  std::error_code failure;
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (!fs::is_directory(folder, failure))
    throw Error(concat("cannot write the file: there is no folder ", folder.string())).at({path});
  if (fs::is_directory(path, failure)) throw Error("cannot write the file: it is a folder").at({path});
  if (access(folder.c_str(), W_OK) != 0)
    throw Error(concat("cannot write the file: no permission to write in ", folder.string())).at({path});
}

}  // namespace kumi
