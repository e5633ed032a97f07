// Scalars for TensorBoard, written without TensorFlow.
//
// An event file is a row of records, each framed as length, masked CRC32C of the length, payload,
// masked CRC32C of the payload; a payload is an Event message in protobuf's wire format, of which
// a scalar needs six fields, encoded by hand. Every record is one write.
// Reference: tensorflow/core/lib/io/record_writer.cc, tensorflow/core/util/event.proto.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/atomic_file.h"

namespace kumi {

class TensorBoardWriter {
 public:
  // Creates <directory>/events.out.tfevents.<seconds>.<host>, and the directory. With resume_step,
  // TensorBoard is told to forget the points after that step which earlier files hold.
  explicit TensorBoardWriter(const std::filesystem::path& directory,
                             std::optional<int64_t> resume_step = std::nullopt);

  // One event with all the scalars (tag, value) of a step. Throws Error (disk full).
  void write(int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

  const std::filesystem::path& path() const { return file_.path(); }

 private:
  void write_record(std::string_view payload);

  AppendFile file_;
};

// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), and as TFRecord masks it.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace kumi
