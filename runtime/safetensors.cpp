#include "runtime/safetensors.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "graph/error.h"

namespace kumi {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr uint64_t kLengthBytes = 8;              // of the header length in front of the header
constexpr uint64_t kLongestHeader = 100'000'000;  // the reference implementation's limit
constexpr uint64_t kHeaderAlignment = 8;
constexpr char kMetadataName[] = "__metadata__";

struct DTypeName {
  DType dtype;
  const char* name;
};
constexpr DTypeName kDTypeNames[] = {{DType::F32, "F32"}, {DType::BF16, "BF16"}, {DType::F16, "F16"},
                                     {DType::F64, "F64"}, {DType::I32, "I32"},   {DType::I64, "I64"},
                                     {DType::U8, "U8"},   {DType::BOOL, "BOOL"}};

const char* format_name(DType dtype) {
  for (const DTypeName& entry : kDTypeNames)
    if (entry.dtype == dtype) return entry.name;
  throw Error(concat("dtype ", to_string(dtype), " has no name in safetensors files"));
}

std::optional<DType> parse_format_name(std::string_view name) {
  for (const DTypeName& entry : kDTypeNames)
    if (entry.name == name) return entry.dtype;
  return std::nullopt;
}

// A name of a stranger's file, fit to be printed.
std::string print_name(std::string_view name) {
  constexpr size_t kLongest = 120;
  std::string text = "'";
  for (char c : name.substr(0, kLongest)) {
    bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    text += control ? '?' : c;
  }
  // A character cut in the middle would make the message itself invalid.
  if (name.size() > kLongest) {
    while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) text.pop_back();
    if (static_cast<unsigned char>(text.back()) >= 0xC0) text.pop_back();
    text += "...";
  }
  return text + "'";
}

// Bytes of a tensor, or nothing if a dimension is negative or a product does not fit.
std::optional<uint64_t> tensor_bytes(DType dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = size_of(dtype);
  for (int64_t dimension : shape)
    if (dimension < 0 || __builtin_mul_overflow(bytes, dimension, &bytes)) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

std::string print_shape(const std::vector<int64_t>& shape) {
  constexpr size_t kLongest = 8;
  std::string text = "[";
  for (size_t i = 0; i < shape.size() && i < kLongest; ++i)
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() > kLongest ? ", ...]" : "]");
}

// What the header says about a tensor, before it is believed.
struct Entry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<int64_t>> offsets;
};

// Receives the header's JSON token by token. A tree of it is never built, so nesting and size
// cost nothing, and names given twice are seen.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::filesystem::path& path) : path_(path) {}

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool key(string_t& text) override {
    if (depth_ == 1) {
      in_metadata_ = text == kMetadataName;
      if (in_metadata_ && std::exchange(metadata_seen_, true)) fail("\"__metadata__\" is given twice");
      if (!in_metadata_) {
        entries.emplace_back();
        entries.back().name = text;
      }
    } else if (!in_metadata_ && text != "dtype" && text != "shape" && text != "data_offsets") {
      fail(concat("unknown key ", print_name(text)));
    }
    if (depth_ == 2) key_ = text;
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ >= 2 || in_list_) unexpected("an object");
    ++depth_;
    return true;
  }

  bool end_object() override {
    if (--depth_ == 1 && !in_metadata_) {
      const Entry& entry = entries.back();
      if (!entry.dtype) fail("\"dtype\" is missing");
      if (!entry.shape) fail("\"shape\" is missing");
      if (!entry.offsets) fail("\"data_offsets\" is missing");
    }
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || in_list_ || key_ == "dtype") unexpected("a list");
    in_list_ = true;
    std::optional<std::vector<int64_t>>& list =
        key_ == "shape" ? entries.back().shape : entries.back().offsets;
    if (list) fail(concat("\"", key_, "\" is given twice"));
    list.emplace();
    return true;
  }

  bool end_array() override {
    in_list_ = false;
    if (key_ == "data_offsets" && entries.back().offsets->size() != 2)
      fail(concat("\"data_offsets\" has ", entries.back().offsets->size(), " numbers instead of 2"));
    return true;
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && in_metadata_) {
      if (!metadata.emplace(key_, text).second)
        fail(concat("\"__metadata__\" has ", print_name(key_), " twice"));
      return true;
    }
    if (depth_ != 2 || in_list_ || key_ != "dtype") unexpected("a text");
    if (entries.back().dtype) fail("\"dtype\" is given twice");
    entries.back().dtype = parse_format_name(text);
    if (!entries.back().dtype) {
      Error error = at_tensor(concat("dtype ", print_name(text), " is not supported"));
      throw error.expected("F32, BF16, F16, F64, I32, I64, U8 or BOOL");
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_list_) unexpected("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      fail(concat("\"", key_, "\" has a number that is too large: ", value));
    (key_ == "shape" ? entries.back().shape : entries.back().offsets)->push_back(static_cast<int64_t>(value));
    return true;
  }

  bool number_integer(number_integer_t value) override {
    if (!in_list_) unexpected("a number");
    fail(concat("\"", key_, "\" has a negative number: ", value));
  }

  bool number_float(number_float_t, const string_t& text) override {
    if (!in_list_) unexpected("a number");
    fail(concat("\"", key_, "\" has a number that is not a 64-bit integer: ", print_name(text)));
  }

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a truth value"); }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) override {
    bool encoding = std::string_view(error.what()).find("UTF-8") != std::string_view::npos;
    throw Error(concat("the header is not ", encoding ? "valid UTF-8" : "valid JSON", ", at byte ", position,
                       " of it"))
        .at({path_.string()});
  }

 private:
  Error at_tensor(const std::string& cause) const {
    bool inside = depth_ >= 1 && !in_metadata_ && !entries.empty();
    Error error(inside ? concat("tensor ", print_name(entries.back().name), ": ", cause)
                       : "header: " + cause);
    error.at({path_.string()});
    return error;
  }

  [[noreturn]] void fail(const std::string& cause) const { throw at_tensor(cause); }

  [[noreturn]] void unexpected(const char* what) const {
    if (depth_ == 0) fail(concat(what, " instead of an object"));
    if (depth_ == 1) fail(concat(what, " where an object describing the tensor belongs"));
    if (in_metadata_)
      fail(concat("\"__metadata__\": ", print_name(key_), " is ", what, " instead of a text"));
    fail(concat("\"", key_, "\" has ", what,
                key_ == "dtype" ? " instead of a text" : " where a list of integers belongs"));
  }

  const std::filesystem::path& path_;
  int depth_ = 0;  // objects that are open
  bool in_list_ = false;
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
  std::string key_;  // the last key inside a tensor or the metadata
};

std::string describe(const Entry& entry, DType dtype, const std::vector<int64_t>& shape) {
  return concat("tensor ", print_name(entry.name), " (", format_name(dtype), " ", print_shape(shape), ")");
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : file_(std::move(path)) {
  auto fail = [this](const std::string& cause) {
    throw Error(cause).at({file_.path().string()}).expected("a safetensors file");
  };
  if (file_.size() < kLengthBytes) fail(concat("too short for a header: ", file_.size(), " bytes"));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file_.data(), kLengthBytes);
  if (header_bytes > kLongestHeader)
    fail(concat("the header length is absurd: ", header_bytes, " bytes (at most ", kLongestHeader, ")"));
  if (header_bytes > file_.size() - kLengthBytes)
    fail(concat("truncated: the header has ", header_bytes, " bytes, but only ", file_.size() - kLengthBytes,
                " follow its length"));
  std::string_view header = file_.text().substr(kLengthBytes, header_bytes);
  if (header.empty() || header.front() != '{') fail("the header does not begin with '{'");

  HeaderReader reader(file_.path());
  nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
  metadata_ = std::move(reader.metadata);

  for (const Entry& entry : reader.entries)
    if (!tensors_.emplace(entry.name, TensorView()).second)
      fail(concat("tensor ", print_name(entry.name), ": the name is given twice"));

  // In the order of the data; empty tensors before the one that begins at the same place.
  std::vector<const Entry*> order;
  for (const Entry& entry : reader.entries) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(),
                   [](const Entry* a, const Entry* b) { return *a->offsets < *b->offsets; });
  const std::byte* data = file_.data() + kLengthBytes + header_bytes;
  const uint64_t data_bytes = file_.size() - kLengthBytes - header_bytes;
  uint64_t expected_begin = 0;
  const Entry* previous = nullptr;
  for (const Entry* next : order) {
    const Entry& entry = *next;
    const DType dtype = *entry.dtype;
    const std::vector<int64_t>& shape = *entry.shape;
    auto fail_tensor = [&](const std::string& cause) {
      throw Error(concat(describe(entry, dtype, shape), ": ", cause)).at({file_.path().string()});
    };
    const uint64_t begin = static_cast<uint64_t>((*entry.offsets)[0]);
    const uint64_t end = static_cast<uint64_t>((*entry.offsets)[1]);
    std::optional<uint64_t> bytes = tensor_bytes(dtype, shape);
    if (!bytes) fail_tensor("the shape is too large to be true");
    if (begin > end) fail_tensor(concat("data begins at ", begin, " but ends at ", end));
    if (end > data_bytes)
      fail_tensor(concat("data [", begin, ", ", end, ") lies outside the file's ", data_bytes,
                         " bytes of data (truncated file?)"));
    if (end - begin != *bytes)
      fail_tensor(concat("the shape needs ", *bytes, " bytes, the offsets give ", end - begin));
    if (begin < expected_begin)
      fail_tensor(
          concat("data [", begin, ", ", end, ") overlaps that of tensor ", print_name(previous->name)));
    if (begin > expected_begin)
      fail_tensor(concat("data begins at ", begin, ", leaving a hole of ", begin - expected_begin,
                         " bytes before it"));
    expected_begin = end;
    previous = &entry;
    tensors_.at(entry.name) = {dtype, shape, data + begin, end - begin};
    names_.push_back(entry.name);
  }
  if (expected_begin != data_bytes)
    fail(concat("the file has ", data_bytes - expected_begin, " bytes behind the last tensor's data"));
}

void SafetensorsFile::read(const TensorView& tensor, size_t offset, size_t bytes, void* to) const {
  if (bytes == 0) return;
  const std::byte* from = tensor.data + offset;
  std::memcpy(to, from, bytes);
  static const auto kPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto begin = static_cast<size_t>(from - file_.data()), first_page = begin / kPage * kPage;
  file_.release_pages(first_page, begin + bytes - first_page);
}

const TensorView* SafetensorsFile::find(const std::string& name) const {
  auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const TensorView& SafetensorsFile::tensor(const std::string& name) const {
  if (const TensorView* view = find(name)) return *view;
  Error error(concat("no tensor ", print_name(name), " among the file's ", names_.size()));
  error.at({path().string()});
  std::string suggestion = did_you_mean(name, names_);
  if (!suggestion.empty()) error.hint(suggestion);
  throw error;
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<TensorSpec> specs,
                                     const std::map<std::string, std::string>& metadata)
    : file_(std::move(path)), specs_(std::move(specs)) {
  const std::string file_name = file_.target().string();
  std::stable_sort(specs_.begin(), specs_.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return size_of(a.dtype) > size_of(b.dtype);
  });
  // Joined by hand, since an ordered_json object searches all its names for each new one.
  std::string text = "{";
  auto append = [&text, &file_name](const std::string& name, const nlohmann::ordered_json& value) {
    try {
      if (text.size() > 1) text += ',';
      text += nlohmann::ordered_json(name).dump() + ":" + value.dump();
    } catch (const nlohmann::json::exception&) {
      throw Error(concat("tensor or metadata ", print_name(name), ": the text is not UTF-8")).at({file_name});
    }
  };
  if (!metadata.empty()) append(kMetadataName, metadata);
  uint64_t begin = 0;
  for (const TensorSpec& spec : specs_) {
    auto fail = [&](const std::string& cause) {
      throw Error(concat("tensor ", print_name(spec.name), ": ", cause)).at({file_name});
    };
    std::optional<uint64_t> bytes = tensor_bytes(spec.dtype, spec.shape);
    if (!bytes) fail(concat("shape ", print_shape(spec.shape), " is negative or too large"));
    uint64_t end = 0;
    if (__builtin_add_overflow(begin, *bytes, &end) || end > std::numeric_limits<int64_t>::max() / 2)
      fail("the file would be too large");
    if (spec.name == kMetadataName) fail("the name is reserved");
    if (!slots_.emplace(spec.name, Slot{begin, *bytes, 0}).second) fail("the name is given twice");
    append(spec.name, {{"dtype", format_name(spec.dtype)},
                       {"shape", spec.shape},
                       {"data_offsets", std::vector<uint64_t>{begin, end}}});
    begin = end;
  }
  text += '}';
  while (text.size() % kHeaderAlignment != 0) text += ' ';
  if (text.size() > kLongestHeader)
    throw Error(concat("the header would have ", text.size(), " bytes (at most ", kLongestHeader, ")"))
        .at({file_name});
  const uint64_t header_bytes = text.size();
  file_.write(&header_bytes, kLengthBytes);
  file_.write(text);
  for (auto& [name, slot] : slots_) slot.begin += kLengthBytes + header_bytes;
}

void SafetensorsWriter::write(const std::string& name, const void* data, size_t bytes, size_t offset) {
  auto found = slots_.find(name);
  if (found == slots_.end())
    throw Error(concat("tensor ", print_name(name), " was not announced")).at({file_.target().string()});
  Slot& slot = found->second;
  if (offset > slot.bytes || bytes > slot.bytes - offset)
    throw Error(concat("tensor ", print_name(name), ": bytes [", offset, ", ", offset + bytes,
                       ") do not fit into its ", slot.bytes))
        .at({file_.target().string()});
  file_.write_at(slot.begin + offset, data, bytes);
  slot.written += bytes;
}

void SafetensorsWriter::commit() {
  for (const TensorSpec& spec : specs_) {
    const Slot& slot = slots_.at(spec.name);
    if (slot.written != slot.bytes)
      throw Error(concat("tensor ", print_name(spec.name), ": ", slot.written, " of ", slot.bytes,
                         " bytes were written"))
          .at({file_.target().string()});
  }
  file_.commit();
}

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSpec> specs;
  for (const TensorToWrite& tensor : tensors) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  SafetensorsWriter writer(path, std::move(specs), metadata);
  for (const TensorToWrite& tensor : tensors)
    writer.write(tensor.name, tensor.data, *tensor_bytes(tensor.dtype, tensor.shape));
  writer.commit();
}

}  // namespace kumi
