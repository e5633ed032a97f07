// Sets a field of a protobuf message from text: what `--set a.b[0].c=value` does.
//
// Works on any message by reflection, so that a new field of a recipe needs no code.
#pragma once

#include <string>
#include <vector>

namespace google::protobuf {
class Descriptor;
class Message;
}  // namespace google::protobuf

namespace kumi {

// `path` names a field: fields of fields by dots, elements of lists by [index]; the index after the
// last one adds an element. A list of plain values without index is replaced by the one value.
// Throws Error for an unknown field ("did you mean"), a bad index or a value of the wrong type.
void set_field(google::protobuf::Message* message, const std::string& path, const std::string& value);

// Names of the message's fields, for "did you mean".
std::vector<std::string> field_names(const google::protobuf::Descriptor& descriptor);

}  // namespace kumi
