#include "runtime/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "graph/error.h"

namespace kumi {
namespace {

static_assert(std::endian::native == std::endian::little, "records are little-endian");

constexpr uint32_t kCastagnoliReflected = 0x82F63B78;

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit)
      remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? kCastagnoliReflected : 0);
    table[byte] = remainder;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

// Field numbers of tensorflow/core/util/event.proto and framework/summary.proto.
enum EventField { WALL_TIME = 1, STEP = 2, FILE_VERSION = 3, SUMMARY = 5, SESSION_LOG = 7 };
enum SummaryField { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE = 2 };
constexpr int kSessionLogStatus = 1;
constexpr uint64_t kSessionLogStart = 1;

enum WireType : uint32_t { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

void put_varint(std::string* out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) *out += static_cast<char>(value | 0x80);
  *out += static_cast<char>(value);
}

template <typename T>
void put_fixed(std::string* out, T value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out->append(bytes, sizeof value);
}

void put_key(std::string* out, int field, WireType type) {
  put_varint(out, (static_cast<uint32_t>(field) << 3) | type);
}

void put_varint_field(std::string* out, int field, uint64_t value) {
  put_key(out, field, VARINT);
  put_varint(out, value);
}

void put_bytes_field(std::string* out, int field, std::string_view bytes) {
  put_key(out, field, BYTES);
  put_varint(out, bytes.size());
  *out += bytes;
}

double seconds_since_epoch() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string event(int64_t step) {
  std::string bytes;
  put_key(&bytes, WALL_TIME, FIXED64);
  put_fixed(&bytes, seconds_since_epoch());
  if (step != 0) put_varint_field(&bytes, STEP, static_cast<uint64_t>(step));
  return bytes;
}

std::string host_name() {
  char name[256] = "";
  if (gethostname(name, sizeof name - 1) != 0 || name[0] == '\0') return "localhost";
  for (char* c = name; *c != '\0'; ++c)
    if (*c == '/') *c = '_';
  return name;
}

AppendFile create_file(const std::filesystem::path& directory) {
  std::error_code code;
  std::filesystem::create_directories(directory, code);
  if (code) throw Error("cannot create the directory: " + code.message()).at({directory.string()});
  char stem[64];
  std::snprintf(stem, sizeof stem, "events.out.tfevents.%010lld.",
                static_cast<long long>(seconds_since_epoch()));
  const std::filesystem::path path = directory / (stem + host_name());
  // Two runs may begin in the same second.
  for (int attempt = 0;; ++attempt) {
    std::filesystem::path candidate = path;
    if (attempt > 0) candidate += concat(".", attempt);
    constexpr int kMostAttempts = 1000;
    if (!std::filesystem::exists(candidate) || attempt == kMostAttempts) {
      try {
        return AppendFile(candidate, AppendFile::Mode::NEW);
      } catch (const Error&) {
        if (attempt == kMostAttempts || !std::filesystem::exists(candidate)) throw;
      }
    }
  }
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (char byte : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFF];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  constexpr uint32_t kMaskDelta = 0xA282EAD8;  // tensorflow/core/lib/hash/crc32c.h
  return std::rotr(crc32c(bytes), 15) + kMaskDelta;
}

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& directory,
                                     std::optional<int64_t> resume_step)
    : file_(create_file(directory)) {
  std::string version = event(0);
  put_bytes_field(&version, FILE_VERSION, "brain.Event:2");
  write_record(version);
  if (resume_step) {
    // TensorBoard drops what it has from this step on when it meets a START.
    std::string session;
    put_varint_field(&session, kSessionLogStatus, kSessionLogStart);
    std::string start = event(*resume_step + 1);
    put_bytes_field(&start, SESSION_LOG, session);
    write_record(start);
  }
}

void TensorBoardWriter::write(int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    put_bytes_field(&entry, VALUE_TAG, tag);
    put_key(&entry, VALUE_SIMPLE, FIXED32);
    put_fixed(&entry, static_cast<float>(value));
    put_bytes_field(&summary, SUMMARY_VALUE, entry);
  }
  std::string bytes = event(step);
  put_bytes_field(&bytes, SUMMARY, summary);
  write_record(bytes);
}

void TensorBoardWriter::write_record(std::string_view payload) {
  std::string length;
  put_fixed(&length, static_cast<uint64_t>(payload.size()));
  std::string record = length;
  put_fixed(&record, masked_crc32c(length));
  record += payload;
  put_fixed(&record, masked_crc32c(payload));
  file_.append(record);
}

}  // namespace kumi
