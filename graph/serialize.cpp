#include "graph/serialize.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>

#include "graph/graph.pb.h"
#include "graph/names.h"
#include "graph/pipeline.h"
#include "graph/text.h"

namespace kumi {
namespace {

using google::protobuf::TextFormat;

constexpr int kFormat = 1;
constexpr size_t kLargestFile = size_t{256} << 20;
// A hand-written or generated size has a few terms; more is damage, and would make the arithmetic slow.
constexpr int kMostTerms = 16;
constexpr int kMostFactors = 8;
constexpr int kHighestRank = 16;
constexpr size_t kMostErrors = 10;

// ---------------------------------------------------------------------------------------- writing

void write(const Dim& dim, proto::Dim* out) {
  out->set_constant(dim.constant());
  for (const Dim::Term& term : dim.terms()) {
    proto::Dim::Term* to = out->add_terms();
    to->set_coefficient(term.coefficient);
    for (const std::string& symbol : term.symbols) to->add_symbols(symbol);
  }
  out->set_name(dim.name());
}

proto::DType to_proto(DType dtype) {
  return static_cast<proto::DType>(static_cast<int>(dtype) + 1);
}

void write(const Type& type, proto::Type* out) {
  out->set_dtype(to_proto(type.dtype));
  for (const Dim& dim : type.shape) write(dim, out->add_shape());
}

void write(const std::string& name, const Attribute& attribute, proto::Attribute* out) {
  struct Writer {
    proto::Attribute* out;
    void operator()(bool value) { out->set_bool_value(value); }
    void operator()(const Dim& value) { write(value, out->mutable_int_value()); }
    void operator()(double value) { out->set_float_value(value); }
    void operator()(const std::string& value) { out->set_string_value(value); }
    void operator()(DType value) { out->set_dtype_value(to_proto(value)); }
    void operator()(const Shape& value) {
      proto::Shape* shape = out->mutable_shape_value();
      for (const Dim& dim : value) write(dim, shape->add_sizes());
    }
  };
  out->set_name(name);
  std::visit(Writer{out}, attribute);
}

void write(const SourceLocation& location, proto::SourceLocation* out) {
  out->set_file(location.file);
  out->set_line(location.line);
  out->set_column(location.column);
}

void write(const Node& node, proto::Node* out) {
  out->set_op(node.op);
  for (ValueId operand : node.operands) out->add_operands(operand);
  for (const auto& [name, attribute] : node.attributes) write(name, attribute, out->add_attributes());
  for (ValueId result : node.results) out->add_results(result);
  out->set_scope(node.scope);
  if (node.location != SourceLocation()) write(node.location, out->mutable_location());
  if (node.group != kNone) out->set_group(node.group);
  out->set_stream(node.stream);
  out->set_recomputed(node.recomputed);
}

void write(const Graph& graph, proto::Graph* out) {
  out->set_name(graph.name);
  for (const Node& node : graph.nodes) write(node, out->add_nodes());
  for (const Value& value : graph.values) {
    proto::Value* to = out->add_values();
    to->set_name(value.name);
    write(value.type, to->mutable_type());
    if (value.placement) {
      to->mutable_placement()->set_state(value.placement->state);
      to->mutable_placement()->set_offset(value.placement->offset);
      for (int64_t stride : value.placement->strides) to->mutable_placement()->add_strides(stride);
    }
  }
  for (const Output& output : graph.outputs) {
    proto::Output* to = out->add_outputs();
    to->set_name(output.name);
    to->set_value(output.value);
  }
  if (graph.arena_bytes) out->set_arena_bytes(*graph.arena_bytes);
  if (graph.arena_lower_bound) out->set_arena_lower_bound(*graph.arena_lower_bound);
}

void write(const Initializer& initializer, proto::Initializer* out) {
  out->set_kind(static_cast<proto::Initializer::Kind>(static_cast<int>(initializer.kind) + 1));
  out->set_parameter(initializer.parameter);
}

void write(const State& state, proto::State* out) {
  out->set_name(state.name);
  out->set_kind(static_cast<proto::State::Kind>(static_cast<int>(state.kind) + 1));
  write(state.type, out->mutable_type());
  write(state.initializer, out->mutable_initializer());
  if (state.location != SourceLocation()) write(state.location, out->mutable_location());
  if (state.offset) out->set_offset(*state.offset);
  for (const FlatTensor& tensor : state.tensors) {
    proto::State::FlatTensor* to = out->add_tensors();
    to->set_name(tensor.name);
    for (const Dim& dim : tensor.shape) write(dim, to->add_shape());
    write(tensor.initializer, to->mutable_initializer());
  }
  for (MeshGroup group : state.cut)
    out->add_cut(static_cast<proto::State::MeshGroup>(static_cast<int>(group) + 1));
}

proto::Module to_proto(const Module& module) {
  proto::Module out;
  out.set_format(kFormat);
  out.set_name(module.name);
  for (const auto& [name, value] : module.parameters) write(name, value, out.add_parameters());
  for (const auto& [name, value] : module.sizes) {
    proto::Size* size = out.add_sizes();
    size->set_name(name);
    if (value) write(*value, size->mutable_default_value());
  }
  for (const State& state : module.states) write(state, out.add_states());
  if (module.mesh != Mesh()) {
    out.set_nodes(module.mesh.nodes);
    out.set_local(module.mesh.local);
  }
  for (const Graph& graph : module.graphs) write(graph, out.add_graphs());
  for (const std::string& pass : module.passes) out.add_passes(pass);
  return out;
}

// ---------------------------------------------------------------------------------------- reading

// Turns the message into a Module and keeps the path of fields down to where it is, for errors.
class Reader {
 public:
  // `tree` and `text` are those of the text format, or null.
  Reader(std::string file, const TextFormat::ParseInfoTree* tree, const std::string* text)
      : file_(std::move(file)), tree_(tree), text_(text) {}

  Module read(const proto::Module& in) {
    if (in.format() != kFormat) {
      Step step(this, "format");
      fail(concat("the format is ", in.format()), concat(kFormat, ", the one that this kumi writes"));
    }
    Module module;
    module.name = text(in.name(), "name");
    module.parameters = read_attributes(in.parameters(), "parameters");
    for (int i = 0; i < in.sizes_size(); ++i) {
      Step step(this, "sizes", i);
      std::string name = text(in.sizes(i).name(), "name");
      std::optional<Dim> value;
      if (in.sizes(i).has_default_value()) {
        Step inner(this, "default_value");
        value = read(in.sizes(i).default_value());
      }
      module.sizes.emplace_back(std::move(name), std::move(value));
    }
    module.mesh = {in.nodes() == 0 ? 1 : in.nodes(), in.local() == 0 ? 1 : in.local()};
    for (int i = 0; i < in.states_size(); ++i) {
      Step step(this, "states", i);
      module.states.push_back(read(in.states(i)));
    }
    for (int i = 0; i < in.graphs_size(); ++i) {
      Step step(this, "graphs", i);
      module.graphs.push_back(read(in.graphs(i)));
    }
    for (int i = 0; i < in.passes_size(); ++i) module.passes.push_back(text(in.passes(i), "passes", i));
    return module;
  }

 private:
  struct PathStep {
    const char* field;
    int index;  // -1 for a field that is not repeated
  };

  struct Step {
    Step(Reader* reader, const char* field, int index = -1) : reader(reader) {
      reader->path_.push_back({field, index});
    }
    ~Step() { reader->path_.pop_back(); }
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
    Reader* reader;
  };

  [[noreturn]] void fail(const std::string& message, const std::string& expected = "") const {
    std::string place;
    for (const PathStep& step : path_) {
      if (!place.empty()) place += ".";
      place += step.field;
      if (step.index >= 0) place += concat("[", step.index, "]");
    }
    SourceLocation location = place_in_text();
    Error error(place.empty() ? message : concat(place, ": ", message));
    error.at(location);
    if (!expected.empty()) error.expected(expected);
    if (location.line > 0) error.source_line(line_of(*text_, location.line));
    throw error;
  }

  // Line and column of the innermost field of the path that the text has.
  SourceLocation place_in_text() const {
    SourceLocation location{file_, 0, 0};
    const TextFormat::ParseInfoTree* tree = tree_;
    const google::protobuf::Descriptor* message = proto::Module::descriptor();
    for (const PathStep& step : path_) {
      if (tree == nullptr || message == nullptr) break;
      const google::protobuf::FieldDescriptor* field = message->FindFieldByName(step.field);
      if (field == nullptr) break;
      TextFormat::ParseLocation found = tree->GetLocation(field, step.index);
      if (found.line < 0 && step.index > 0) found = tree->GetLocation(field, 0);  // [1, 2, 3] is one place
      if (found.line >= 0) location = {file_, found.line + 1, found.column + 1};
      message = field->message_type();
      tree = message == nullptr ? nullptr : tree->GetTreeForNested(field, step.index);
    }
    return location;
  }

  std::string text(const std::string& in, const char* field, int index = -1) {
    if (!is_utf8(in)) {
      Step step(this, field, index);
      fail("the text is not valid UTF-8");
    }
    return in;
  }

  Dim read(const proto::Dim& in) {
    if (in.terms_size() > kMostTerms)
      fail(concat("a size with ", in.terms_size(), " terms"), concat("at most ", kMostTerms));
    Dim dim(in.constant());
    for (int i = 0; i < in.terms_size(); ++i) {
      Step step(this, "terms", i);
      const proto::Dim::Term& term = in.terms(i);
      if (term.symbols_size() == 0 || term.symbols_size() > kMostFactors)
        fail(concat("a term with ", term.symbols_size(), " symbols"), concat("1 to ", kMostFactors));
      if (term.coefficient() == 0) fail("the coefficient of a term is 0");
      try {
        Dim product(term.coefficient());
        for (int j = 0; j < term.symbols_size(); ++j) {
          std::string symbol = text(term.symbols(j), "symbols", j);
          if (!is_identifier(symbol)) fail(concat("the symbol ", quoted(symbol), " is not an identifier"));
          product = product * Dim::symbol(symbol);
        }
        dim = dim + product;
      } catch (const Error& error) {
        if (error.location().known()) throw;
        fail(error.what_happened());
      }
    }
    return in.name().empty() ? dim : Dim::named(text(in.name(), "name"), dim);
  }

  Shape read(const google::protobuf::RepeatedPtrField<proto::Dim>& in, const char* field) {
    // A list of numbers, as the sizes of a split, may be long; verify() limits the rank of shapes.
    const bool numbers =
        std::all_of(in.begin(), in.end(), [](const proto::Dim& dim) { return dim.terms_size() == 0; });
    if (in.size() > kHighestRank && !numbers) {
      Step step(this, field);
      fail(concat("a list of ", in.size(), " sizes"), concat("at most ", kHighestRank));
    }
    Shape shape;
    for (int i = 0; i < in.size(); ++i) {
      Step step(this, field, i);
      shape.push_back(read(in[i]));
    }
    return shape;
  }

  DType read(proto::DType in, const char* field) {
    if (in < proto::F32 || in > proto::BOOL) {
      Step step(this, field);
      fail(in == 0 ? "the element type is missing"
                   : concat("the element type has the unknown number ", static_cast<int>(in)));
    }
    return static_cast<DType>(in - 1);
  }

  Type read(const proto::Type& in) {
    Step step(this, "type");
    return Type{read(in.dtype(), "dtype"), read(in.shape(), "shape")};
  }

  Attribute read(const proto::Attribute& in) {
    switch (in.value_case()) {
      case proto::Attribute::kBoolValue:
        return in.bool_value();
      case proto::Attribute::kIntValue: {
        Step step(this, "int_value");
        return read(in.int_value());
      }
      case proto::Attribute::kFloatValue:
        return in.float_value();
      case proto::Attribute::kStringValue:
        return text(in.string_value(), "string_value");
      case proto::Attribute::kDtypeValue:
        return read(in.dtype_value(), "dtype_value");
      case proto::Attribute::kShapeValue: {
        Step step(this, "shape_value");
        return read(in.shape_value().sizes(), "sizes");
      }
      case proto::Attribute::VALUE_NOT_SET:
        break;
    }
    fail(concat("the attribute ", quoted(in.name()), " has no value"));
  }

  Attributes read_attributes(const google::protobuf::RepeatedPtrField<proto::Attribute>& in,
                             const char* field) {
    Attributes attributes;
    for (int i = 0; i < in.size(); ++i) {
      Step step(this, field, i);
      std::string name = text(in[i].name(), "name");
      if (!is_identifier(name)) fail(concat("the name ", quoted(name), " is not an identifier"));
      if (find_attribute(attributes, name) != nullptr) fail(concat("the name '", name, "' appears twice"));
      attributes.emplace_back(std::move(name), read(in[i]));
    }
    return attributes;
  }

  SourceLocation read(const proto::SourceLocation& in) {
    Step step(this, "location");
    if (in.line() < 0 || in.column() < 0) fail("a line or column is negative");
    return SourceLocation{in.file(), in.line(), in.column()};
  }

  State read(const proto::State& in) {
    State state;
    state.name = text(in.name(), "name");
    if (in.kind() < proto::State::WEIGHT || in.kind() > proto::State::REPLICA) {
      Step step(this, "kind");
      fail("the kind of the state is missing or unknown", "WEIGHT, OPTIMIZER, ACCUMULATOR, CACHE or REPLICA");
    }
    state.kind = static_cast<State::Kind>(in.kind() - 1);
    state.type = read(in.type());
    state.initializer = read(in.initializer());
    state.location = read(in.location());
    if (in.has_offset()) state.offset = in.offset();
    for (int i = 0; i < in.tensors_size(); ++i) {
      Step step(this, "tensors", i);
      FlatTensor& tensor = state.tensors.emplace_back();
      tensor.name = text(in.tensors(i).name(), "name");
      tensor.shape = read(in.tensors(i).shape(), "shape");
      tensor.initializer = read(in.tensors(i).initializer());
    }
    for (int i = 0; i < in.cut_size(); ++i) {
      Step step(this, "cut", i);
      if (in.cut(i) < proto::State::WORLD || in.cut(i) > proto::State::CROSS_NODE)
        fail("the group of the mesh is missing or unknown", "WORLD, NODE or CROSS_NODE");
      state.cut.push_back(static_cast<MeshGroup>(in.cut(i) - 1));
    }
    return state;
  }

  Initializer read(const proto::Initializer& in) {
    Step step(this, "initializer");
    if (in.kind() < proto::Initializer::ZEROS || in.kind() > proto::Initializer::UNIFORM) {
      Step inner(this, "kind");
      fail("the kind of the initializer is missing or unknown", "ZEROS, ONES, CONSTANT, NORMAL or UNIFORM");
    }
    return {static_cast<Initializer::Kind>(in.kind() - 1), in.parameter()};
  }

  ValueId read_value_id(int32_t id, size_t count, bool optional, const char* field, int index = -1) {
    if (id < (optional ? kNone : 0) || id >= static_cast<int64_t>(count)) {
      Step step(this, field, index);
      fail(concat("there is no value ", id), concat("an index below ", count, ", the number of values"));
    }
    return id;
  }

  Node read(const proto::Node& in, size_t value_count) {
    Node node;
    node.op = text(in.op(), "op");
    for (int i = 0; i < in.operands_size(); ++i)
      node.operands.push_back(read_value_id(in.operands(i), value_count, true, "operands", i));
    node.attributes = read_attributes(in.attributes(), "attributes");
    for (int i = 0; i < in.results_size(); ++i)
      node.results.push_back(read_value_id(in.results(i), value_count, false, "results", i));
    node.scope = text(in.scope(), "scope");
    node.location = read(in.location());
    if (in.has_group()) {
      if (in.group() < 0) {
        Step step(this, "group");
        fail(concat("the group is ", in.group()), "0 or more");
      }
      node.group = in.group();
    }
    node.stream = in.stream();
    node.recomputed = in.recomputed();
    return node;
  }

  Graph read(const proto::Graph& in) {
    Graph graph;
    graph.name = text(in.name(), "name");
    for (int i = 0; i < in.values_size(); ++i) {
      Step step(this, "values", i);
      Value value;
      value.name = text(in.values(i).name(), "name");
      value.type = read(in.values(i).type());
      if (in.values(i).has_placement()) {
        Step inner(this, "placement");
        const proto::Placement& placement = in.values(i).placement();
        value.placement = Placement{text(placement.state(), "state"),
                                    placement.offset(),
                                    {placement.strides().begin(), placement.strides().end()}};
      }
      graph.values.push_back(std::move(value));
    }
    for (int i = 0; i < in.nodes_size(); ++i) {
      Step step(this, "nodes", i);
      Node node = read(in.nodes(i), graph.values.size());
      for (size_t j = 0; j < node.results.size(); ++j) {
        Value& value = graph.values[node.results[j]];
        if (value.producer != kNone) {
          Step inner(this, "results", static_cast<int>(j));
          fail(
              concat("the value ", node.results[j], " is already the result of nodes[", value.producer, "]"));
        }
        value.producer = i;
        value.result_index = static_cast<int32_t>(j);
      }
      graph.nodes.push_back(std::move(node));
    }
    for (int i = 0; i < in.values_size(); ++i)
      if (graph.values[i].producer == kNone) {
        Step step(this, "values", i);
        fail("no node has this value as its result");
      }
    for (int i = 0; i < in.outputs_size(); ++i) {
      Step step(this, "outputs", i);
      ValueId value = read_value_id(in.outputs(i).value(), graph.values.size(), false, "value");
      graph.outputs.push_back({text(in.outputs(i).name(), "name"), value});
    }
    if (in.has_arena_bytes()) graph.arena_bytes = in.arena_bytes();
    if (in.has_arena_lower_bound()) graph.arena_lower_bound = in.arena_lower_bound();
    return graph;
  }

  std::string file_;
  const TextFormat::ParseInfoTree* tree_;
  const std::string* text_;
  std::vector<PathStep> path_;
};

Module checked(Module module, const std::string& file) {
  try {
    verify(module);
  } catch (Error& error) {
    if (!error.location().known()) error.at({file, 0, 0});
    error.while_doing(concat("checking the module read from ", file));
    throw;
  }
  return module;
}

void check_size(size_t bytes, const std::string& file) {
  if (bytes > kLargestFile)
    throw Error(concat("the file has ", bytes, " bytes, more than a module can have"))
        .at({file, 0, 0})
        .expected(concat("at most ", kLargestFile));
}

// Collects what the text format's parser reports, as one Error.
class ErrorCollector : public google::protobuf::io::ErrorCollector {
 public:
  ErrorCollector(const std::string& file, const std::string& text) : file_(file), text_(text) {}

  void AddError(int line, int column, const std::string& message) override {
    Error error(message);
    if (line >= 0)
      error.at({file_, line + 1, column + 1}).source_line(line_of(text_, line + 1));
    else
      error.at({file_, 0, 0});
    if (!first_)
      first_ = std::move(error);
    else if (first_->count() < kMostErrors)
      first_->also(std::move(error));
  }
  void AddWarning(int, int, const std::string&) override {}

  [[noreturn]] void fail() const {
    if (first_) throw *first_;
    throw Error("this is not a module in protobuf's text format").at({file_, 0, 0});
  }

 private:
  const std::string& file_;
  const std::string& text_;
  std::optional<Error> first_;
};

}  // namespace

std::string to_binary(const Module& module) {
  return to_proto(module).SerializeAsString();
}

std::string to_text_format(const Module& module) {
  TextFormat::Printer printer;
  printer.SetUseShortRepeatedPrimitives(true);
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  printer.PrintToString(to_proto(module), &text);
  return "# proto-file: graph/graph.proto\n# proto-message: kumi.proto.Module\n\n" + text;
}

Module from_binary(const std::string& bytes, const std::string& file) {
  check_size(bytes.size(), file);
  google::protobuf::LogSilencer silencer;  // errors are thrown, not logged
  proto::Module message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    throw Error("the file is damaged, or no module in protobuf's binary format")
        .at({file, 0, 0})
        .expected("what `kumi dump --format pb` writes (graph/graph.proto)");
  return checked(Reader(file, nullptr, nullptr).read(message), file);
}

Module from_text_format(const std::string& text, const std::string& file) {
  check_size(text.size(), file);
  google::protobuf::LogSilencer silencer;
  ErrorCollector errors(file, text);
  TextFormat::ParseInfoTree tree;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  parser.WriteLocationsTo(&tree);
  parser.SetRecursionLimit(32);  // the schema nests less than ten deep
  proto::Module message;
  if (!parser.ParseFromString(text, &message)) errors.fail();
  return checked(Reader(file, &tree, &text).read(message), file);
}

Module read_module(const std::string& path) {
  bool binary = path.ends_with(".pb");
  if (!binary && !path.ends_with(".txtpb"))
    throw Error("the file's name does not say what it holds")
        .at({path, 0, 0})
        .expected("a module in protobuf's binary format (.pb) or text format (.txtpb)");
  errno = 0;
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  std::streamoff size = in ? static_cast<std::streamoff>(in.tellg()) : -1;
  // A folder opens like a file and has an absurd size.
  if (size < 0 || size == std::numeric_limits<std::streamoff>::max())
    throw Error(concat("the file cannot be read", errno == 0 ? "" : concat(": ", std::strerror(errno))))
        .at({path, 0, 0});
  check_size(static_cast<size_t>(size), path);
  std::string content(static_cast<size_t>(size), '\0');
  in.seekg(0);
  if (!in.read(content.data(), size))
    throw Error(concat("the file cannot be read", errno == 0 ? "" : concat(": ", std::strerror(errno))))
        .at({path, 0, 0});
  return binary ? from_binary(content, path) : from_text_format(content, path);
}

}  // namespace kumi
