#include "frontend/set_field.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <charconv>
#include <optional>

#include "graph/error.h"
#include "graph/text.h"

namespace kumi {
namespace {

using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

struct Part {
  std::string name;
  std::optional<int> index;
};

std::vector<Part> split_path(const std::string& path) {
  std::vector<Part> parts;
  size_t begin = 0;
  while (true) {
    const size_t end = std::min(path.find('.', begin), path.size());
    std::string text = path.substr(begin, end - begin);
    Part part;
    if (const size_t bracket = text.find('['); bracket != std::string::npos) {
      int index = 0;
      const char* first = text.data() + bracket + 1;
      const char* last = text.data() + text.size();
      auto [stop, failure] = std::from_chars(first, last, index);
      if (failure != std::errc() || index < 0 || stop + 1 != last || *stop != ']')
        throw Error(concat("'", text, "' is not an element of a list"))
            .expected("an index in brackets, as in sources[0]");
      part.index = index;
      text.resize(bracket);
    }
    part.name = text;
    parts.push_back(std::move(part));
    if (end == path.size()) return parts;
    begin = end + 1;
  }
}

template <typename T>
T parse_number(const std::string& value, const char* expected) {
  T number{};
  auto [stop, failure] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (failure != std::errc() || stop != value.data() + value.size() || value.empty())
    throw Error(concat("the value is '", value, "'")).expected(expected);
  return number;
}

bool parse_bool(const std::string& value) {
  if (value == "true" || value == "1") return true;
  if (value == "false" || value == "0") return false;
  throw Error(concat("the value is '", value, "'")).expected("true or false");
}

const EnumValueDescriptor* parse_enum(const EnumDescriptor& type, const std::string& value) {
  if (const EnumValueDescriptor* found = type.FindValueByName(value)) return found;
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    names.push_back(type.value(i)->name());
  }
  throw Error(concat("the value is '", value, "'"))
      .expected("one of " + joined(names))
      .hint(did_you_mean(value, names));
}

const std::string& checked_text(const std::string& value) {
  if (!is_utf8(value)) throw Error("the value is not UTF-8");
  return value;
}

// One of Set, SetRepeated or Add for each type.
void set_scalar(Message* message, const FieldDescriptor* field, std::optional<int> index,
                const std::string& value) {
  const Reflection& reflection = *message->GetReflection();
  auto store = [&](auto number, auto set, auto set_repeated, auto add) {
    if (!field->is_repeated())
      (reflection.*set)(message, field, number);
    else if (*index < reflection.FieldSize(*message, field))
      (reflection.*set_repeated)(message, field, *index, number);
    else
      (reflection.*add)(message, field, number);
  };
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return store(parse_number<int32_t>(value, "a whole number"), &Reflection::SetInt32,
                   &Reflection::SetRepeatedInt32, &Reflection::AddInt32);
    case FieldDescriptor::CPPTYPE_INT64:
      return store(parse_number<int64_t>(value, "a whole number"), &Reflection::SetInt64,
                   &Reflection::SetRepeatedInt64, &Reflection::AddInt64);
    case FieldDescriptor::CPPTYPE_UINT32:
      return store(parse_number<uint32_t>(value, "a whole number, 0 or more"), &Reflection::SetUInt32,
                   &Reflection::SetRepeatedUInt32, &Reflection::AddUInt32);
    case FieldDescriptor::CPPTYPE_UINT64:
      return store(parse_number<uint64_t>(value, "a whole number, 0 or more"), &Reflection::SetUInt64,
                   &Reflection::SetRepeatedUInt64, &Reflection::AddUInt64);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return store(parse_number<double>(value, "a number"), &Reflection::SetDouble,
                   &Reflection::SetRepeatedDouble, &Reflection::AddDouble);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return store(parse_number<float>(value, "a number"), &Reflection::SetFloat,
                   &Reflection::SetRepeatedFloat, &Reflection::AddFloat);
    case FieldDescriptor::CPPTYPE_BOOL:
      return store(parse_bool(value), &Reflection::SetBool, &Reflection::SetRepeatedBool,
                   &Reflection::AddBool);
    case FieldDescriptor::CPPTYPE_ENUM:
      return store(parse_enum(*field->enum_type(), value), &Reflection::SetEnum, &Reflection::SetRepeatedEnum,
                   &Reflection::AddEnum);
    case FieldDescriptor::CPPTYPE_STRING:
      return store(checked_text(value), &Reflection::SetString, &Reflection::SetRepeatedString,
                   &Reflection::AddString);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      throw Error("it is a group of fields")
          .expected("one of its fields")
          .hint(concat("set ", field->name(), ".", field_names(*field->message_type()).front(), "=..."));
  }
}

const FieldDescriptor* find(const Message& message, const Part& part) {
  const auto& descriptor = *message.GetDescriptor();
  if (const FieldDescriptor* field = descriptor.FindFieldByName(part.name)) return field;
  const std::vector<std::string> names = field_names(descriptor);
  throw Error(concat("there is no field '", part.name, "'"))
      .expected("one of " + joined(names))
      .hint(did_you_mean(part.name, names));
}

void check_index(const Message& message, const FieldDescriptor* field, const Part& part, bool is_last) {
  if (!field->is_repeated()) {
    if (part.index) throw Error(concat("'", part.name, "' is not a list"));
    return;
  }
  const int size = message.GetReflection()->FieldSize(message, field);
  const bool is_group = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
  if (!part.index && (is_group || !is_last))
    throw Error(concat("'", part.name, "' is a list")).expected(concat("an index, as in ", part.name, "[0]"));
  if (part.index && *part.index > size)
    throw Error(concat("'", part.name, "' has no element ", *part.index))
        .expected(concat("an index from 0 to ", size, ", where ", size, " adds an element"));
}

}  // namespace

std::vector<std::string> field_names(const google::protobuf::Descriptor& descriptor) {
  std::vector<std::string> names;
  for (int i = 0; i < descriptor.field_count(); ++i) names.push_back(descriptor.field(i)->name());
  return names;
}

void set_field(Message* message, const std::string& path, const std::string& value) {
  const std::vector<Part> parts = split_path(path);
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const bool is_last = i + 1 == parts.size();
    const FieldDescriptor* field = find(*message, part);
    check_index(*message, field, part, is_last);
    const Reflection& reflection = *message->GetReflection();
    if (is_last) {
      if (field->is_repeated() && !part.index) reflection.ClearField(message, field);
      set_scalar(message, field, part.index.value_or(0), value);
      return;
    }
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE)
      throw Error(concat("'", part.name, "' has no fields"));
    if (!field->is_repeated())
      message = reflection.MutableMessage(message, field);
    else if (*part.index < reflection.FieldSize(*message, field))
      message = reflection.MutableRepeatedMessage(message, field, *part.index);
    else
      message = reflection.AddMessage(message, field);
  }
}

}  // namespace kumi
