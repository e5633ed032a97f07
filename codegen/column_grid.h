// Sums and maxima over rows, column by column, for the threads of a GPU.
#pragma once

#include <cstdint>
#include <functional>

#include "codegen/kernel_builder.h"

namespace kumi {

struct ColumnReduction {
  Reduction reduction = Reduction::kSum;  // or kMax
  int64_t rows = 0, columns = 0;
  DType dtype = DType::F32;  // in which it is reduced
  int64_t work = 0;          // as of KernelBuilder::parallel()
};

// Writes the phase out[column] = finish(reduction over rows of element(row, column)). A team has a few
// columns: each place of a grid of columns and groups of rows reduces the rows of its group, then the groups
// are reduced, in an order that the sizes decide.
void reduce_columns_on_grid(KernelBuilder& k, const ColumnReduction& all, const Buffer& out,
                            const std::function<Expr(Expr row, Expr column)>& element,
                            const std::function<Expr(Expr)>& finish);

}  // namespace kumi
