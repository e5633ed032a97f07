#include "codegen/column_grid.h"

#include <cmath>

namespace kumi {
namespace {

constexpr int64_t kColumns = 32;   // that a team reduces together
constexpr int64_t kPlaces = 2048;  // of its grid

}  // namespace

void reduce_columns_on_grid(KernelBuilder& k, const ColumnReduction& all, const Buffer& out,
                            const std::function<Expr(Expr, Expr)>& element,
                            const std::function<Expr(Expr)>& finish) {
  const bool is_sum = all.reduction == Reduction::kSum;
  const Expr initial = constant(all.dtype, is_sum ? 0 : -INFINITY);
  const auto combined = [&](const Expr& a, const Expr& b) { return is_sum ? a + b : maximum(a, b); };
  int64_t columns = kColumns;
  while (columns > 1 && columns / 2 >= all.columns) columns /= 2;
  int64_t groups = kPlaces / columns;
  while (groups > 1 && groups / 2 >= all.rows) groups /= 2;
  const int64_t places = columns * groups;
  const bool is_whole = all.columns % columns == 0;
  const auto each = [&](int64_t count, const std::function<void(Expr)>& body) {
    k.loop(0, count, LoopKind::kVector, body);
  };
  const auto if_needed = [&](const Expr& condition, const std::function<void()>& body) {
    if (condition)
      k.if_(condition, body);
    else
      body();
  };
  k.parallel((all.columns + columns - 1) / columns, all.work, [&](Expr block) {
    const Expr first = k.let("first_column", block * Expr(columns));
    const Buffer parts = k.array("parts", all.dtype, places);
    const auto add = [&](const Expr& row_block, bool is_last) {
      each(places, [&](Expr place) {
        const Expr row = row_block * Expr(groups) + (columns == 1 ? place : place / Expr(columns));
        const Expr column = first + (columns == 1 ? Expr(0) : place % Expr(columns));
        Expr condition;
        if (is_last) condition = row < Expr(all.rows);
        if (!is_whole) {
          const Expr exists = column < Expr(all.columns);
          condition = condition ? condition && exists : exists;
        }
        if_needed(condition, [&] { k.store(parts, place, combined(parts[place], element(row, column))); });
      });
    };
    each(places, [&](Expr place) { k.store(parts, place, initial); });
    k.loop(0, all.rows / groups, LoopKind::kSerial, [&](Expr row_block) { add(row_block, false); });
    if (all.rows % groups != 0) add(all.rows / groups, true);
    const Buffer shared = k.array("all_parts", all.dtype, places);
    each(places, [&](Expr place) { k.store(shared, place, parts[place]); });
    each(columns, [&](Expr column) {
      const Local total = k.local("total", all.dtype, initial);
      k.loop(0, groups, LoopKind::kSerial, [&](Expr group) {
        k.assign(total, combined(total.value(), shared[group * Expr(columns) + column]));
      });
      if_needed(is_whole ? Expr() : first + column < Expr(all.columns),
                [&] { k.store(out, first + column, finish(total.value())); });
    });
  });
}

}  // namespace kumi
