// Choosing the next token from a model's logits.
#pragma once

#include <cstdint>
#include <span>

namespace kumi {

struct Sampling {
  double temperature = 1;  // divides the logits; 0: always the likeliest token
  // Only the likeliest tokens whose probabilities sum to this are chosen from, at least one (nucleus
  // sampling: Holtzman et al. 2019, arXiv:1904.09751).
  double top_p = 1;
};

// Throws Error for a temperature below 0 or a top_p outside of (0, 1].
void check(const Sampling& sampling);

// The index of the token that `uniform`, a number in [0, 1), picks; a function of its arguments alone. A
// logit of minus infinity is never chosen; of equal ones the first counts as the likelier. Throws Error if a
// logit is no number or plus infinity, or all are minus infinity.
int32_t choose_token(std::span<const float> logits, const Sampling& sampling, double uniform);

}  // namespace kumi
