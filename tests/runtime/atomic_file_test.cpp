// Atomic files: whole or absent, whatever happens in between.
#include "runtime/atomic_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "graph/error.h"

namespace kumi {
namespace {

namespace fs = std::filesystem;

class AtomicFileTest : public testing::Test {
 protected:
  AtomicFileTest() {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / (std::string("kumi_atomic_file_") + test->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~AtomicFileTest() override { fs::remove_all(folder_); }

  int entries() const { return static_cast<int>(std::distance(fs::directory_iterator(folder_), {})); }

  fs::path folder_;
};

TEST_F(AtomicFileTest, AppearsWhenCommitted) {
  const fs::path path = folder_ / "file";
  AtomicFile file(path);
  file.write("hello ");
  file.write("world");
  EXPECT_FALSE(fs::exists(path));
  EXPECT_EQ(file.size(), 11u);
  file.commit();
  EXPECT_EQ(read_file(path), "hello world");
  EXPECT_EQ(entries(), 1);
}

TEST_F(AtomicFileTest, KeepsTheOldContentsUntilThen) {
  const fs::path path = folder_ / "file";
  write_file_atomically(path, "old");
  {
    AtomicFile file(path);
    file.write("half of the new");
    EXPECT_EQ(read_file(path), "old");
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(entries(), 1);
  write_file_atomically(path, "new");
  EXPECT_EQ(read_file(path), "new");
}

TEST_F(AtomicFileTest, RemovesItsTemporaryWhenAnExceptionPasses) {
  try {
    AtomicFile file(folder_ / "file");
    file.write("half");
    throw Error("something else");
  } catch (const Error&) {
  }
  EXPECT_EQ(entries(), 0);
}

TEST_F(AtomicFileTest, WritesAtOffsets) {
  const fs::path path = folder_ / "file";
  AtomicFile file(path);
  file.write("....abc");
  file.write_at(0, "1234", 4);
  file.write_at(8, "z", 1);
  file.write("!");
  file.commit();
  EXPECT_EQ(read_file(path), std::string("1234abc\0z!", 10));
}

TEST_F(AtomicFileTest, MovesWithItsTemporary) {
  const fs::path path = folder_ / "file";
  {
    AtomicFile first(path);
    first.write("a");
    AtomicFile second(std::move(first));
    second.write("b");
    second.commit();
  }
  EXPECT_EQ(read_file(path), "ab");
  EXPECT_EQ(entries(), 1);
}

TEST_F(AtomicFileTest, NamesTheTargetInErrors) {
  const fs::path path = folder_ / "missing" / "file";
  try {
    AtomicFile file(path);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.location().file, path.string());
    EXPECT_NE(error.what_happened().find("No such file"), std::string::npos) << error.what();
  }
  EXPECT_THROW(AtomicFile(""), Error);
  EXPECT_THROW(AtomicFile(folder_ / ""), Error);
}

TEST_F(AtomicFileTest, DoesNotReplaceADirectory) {
  fs::create_directories(folder_ / "directory" / "inside");
  EXPECT_THROW(write_file_atomically(folder_ / "directory", "x"), Error);
  EXPECT_EQ(entries(), 1);
}

TEST_F(AtomicFileTest, PublishesADirectory) {
  const fs::path path = folder_ / "checkpoint";
  {
    AtomicDirectory directory(path / "");  // a trailing slash means the same
    fs::create_directories(directory.path() / "part");
    std::ofstream(directory.path() / "part" / "file") << "first";
    EXPECT_FALSE(fs::exists(path));
    directory.commit();
  }
  EXPECT_EQ(read_file(path / "part" / "file"), "first");
  {
    AtomicDirectory abandoned(path);
    std::ofstream(abandoned.path() / "file") << "never seen";
  }
  EXPECT_EQ(entries(), 1);
  EXPECT_FALSE(fs::exists(path / "file"));
}

TEST_F(AtomicFileTest, ReplacesADirectoryInOneStep) {
  const fs::path path = folder_ / "checkpoint";
  for (const char* contents : {"first", "second"}) {
    AtomicDirectory directory(path);
    std::ofstream(directory.path() / contents) << contents;
    directory.commit();
    EXPECT_EQ(read_file(path / contents), contents);
  }
  EXPECT_FALSE(fs::exists(path / "first"));
  EXPECT_EQ(entries(), 1);
}

TEST_F(AtomicFileTest, ReadsWholeFiles) {
  std::string contents(100000, 'x');
  contents[5] = '\0';
  write_file_atomically(folder_ / "file", contents);
  EXPECT_EQ(read_file(folder_ / "file"), contents);
  write_file_atomically(folder_ / "empty", "");
  EXPECT_EQ(read_file(folder_ / "empty"), "");
  EXPECT_THROW(read_file(folder_ / "missing"), Error);
  EXPECT_THROW(read_file(folder_), Error);
  EXPECT_THROW(read_file("/dev/null"), Error);
}

TEST_F(AtomicFileTest, MapsFiles) {
  write_file_atomically(folder_ / "file", "mapped");
  write_file_atomically(folder_ / "empty", "");
  MappedFile file(folder_ / "file");
  EXPECT_EQ(file.text(), "mapped");
  const std::byte* address = file.data();
  MappedFile moved(std::move(file));
  EXPECT_EQ(moved.data(), address);
  EXPECT_EQ(file.size(), 0u);
  MappedFile assigned;
  assigned = std::move(moved);
  EXPECT_EQ(assigned.text(), "mapped");
  // A file that is replaced stays as it was for those who have it.
  write_file_atomically(folder_ / "file", "new");
  EXPECT_EQ(assigned.text(), "mapped");
  EXPECT_EQ(MappedFile(folder_ / "empty").size(), 0u);
  EXPECT_THROW(MappedFile(folder_ / "missing"), Error);
  EXPECT_THROW(MappedFile{folder_}, Error);
}

TEST_F(AtomicFileTest, AppendsRecords) {
  const fs::path path = folder_ / "log";
  {
    AppendFile file(path, AppendFile::Mode::NEW);
    file.append("one,");
    file.append("two,");
  }
  EXPECT_THROW(AppendFile(path, AppendFile::Mode::NEW), Error);
  {
    AppendFile file(path, AppendFile::Mode::CONTINUE);
    file.truncate(4);
    file.append("three");
  }
  EXPECT_EQ(read_file(path), "one,three");
  {
    AppendFile file(path, AppendFile::Mode::REPLACE);
  }
  EXPECT_EQ(read_file(path), "");
  EXPECT_THROW(AppendFile("/dev/full", AppendFile::Mode::CONTINUE), Error);
}

TEST_F(AtomicFileTest, ReplacesALinkAndNotWhatItPointsTo) {
  write_file_atomically(folder_ / "file", "pointed to");
  fs::create_symlink(folder_ / "file", folder_ / "link");
  write_file_atomically(folder_ / "link", "new");
  EXPECT_EQ(read_file(folder_ / "link"), "new");
  EXPECT_EQ(read_file(folder_ / "file"), "pointed to");
}

}  // namespace
}  // namespace kumi
