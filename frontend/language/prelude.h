// Functions of the language that are written in it. Errors inside of them point at the call.
#pragma once

namespace kumi::language {

inline constexpr char kPrelude[] = R"kumi(
model prelude {
  # [batch, seq, heads * head_dim] as [batch, heads, seq, head_dim]
  fn split_heads(x, heads) =
    transpose(reshape(x, [dim(x, 0), dim(x, 1), heads, dim(x, 2) / heads]), axes = [0, 2, 1, 3])

  # and back
  fn merge_heads(x) =
    reshape(transpose(x, axes = [0, 2, 1, 3]), [dim(x, 0), dim(x, 2), dim(x, 1) * dim(x, 3)])
}
)kumi";

}  // namespace kumi::language
