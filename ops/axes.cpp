#include "ops/axes.h"

#include <algorithm>

namespace kumi {

const Dim& dim_attribute(const Attributes& attributes, const std::string& name) {
  const Attribute* attribute = find_attribute(attributes, name);
  const Dim* dim = attribute == nullptr ? nullptr : std::get_if<Dim>(attribute);
  if (dim == nullptr) throw Error(concat("the attribute '", name, "' is no size"));
  return *dim;
}

std::vector<int64_t> axes_attribute(const Attributes& attributes, const std::string& name, int rank) {
  std::vector<int64_t> axes = numbers(shape_attribute(attributes, name));
  for (int64_t& axis : axes) axis = wrap_axis(axis, rank);
  return axes;
}

void require_axis(const InferContext& context, const Dim& axis, const Type& operand) {
  int64_t rank = operand.rank();
  if (axis.is_number() && axis.number() >= -rank && axis.number() < rank) return;
  if (rank == 0) context.fail(concat("there is no axis ", axis.display(), ", the operand is a scalar"));
  context.fail(concat("there is no axis ", axis.display(), " in ", display(operand), "; axes are 0 to ",
                      rank - 1, ", or -1 (the last) to ", -rank));
}

void require_axes(const InferContext& context, const Shape& axes, const Type& operand) {
  std::vector<int64_t> seen;
  for (const Dim& axis : axes) {
    require_axis(context, axis, operand);
    int64_t wrapped = wrap_axis(axis.number(), operand.rank());
    if (std::find(seen.begin(), seen.end(), wrapped) != seen.end())
      context.fail(concat("the axis ", wrapped, " is given twice, in ", to_string(axes)));
    seen.push_back(wrapped);
  }
}

std::vector<int64_t> index_at(int64_t position, const std::vector<int64_t>& shape) {
  std::vector<int64_t> index(shape.size());
  for (size_t axis = shape.size(); axis-- > 0; position /= shape[axis]) index[axis] = position % shape[axis];
  return index;
}

int64_t position_of(const std::vector<int64_t>& index, const std::vector<int64_t>& shape) {
  int64_t position = 0;
  for (size_t axis = 0; axis < shape.size(); ++axis) position = position * shape[axis] + index[axis];
  return position;
}

int64_t broadcast_position(const std::vector<int64_t>& index, const std::vector<int64_t>& shape) {
  size_t added = index.size() - shape.size();
  int64_t position = 0;
  for (size_t axis = 0; axis < shape.size(); ++axis)
    position = position * shape[axis] + (shape[axis] == 1 ? 0 : index[added + axis]);
  return position;
}

}  // namespace kumi
