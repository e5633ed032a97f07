#include "frontend/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "graph/error.h"

namespace kumi {
namespace {

int32_t likeliest(std::span<const float> logits) {
  for (float logit : logits)
    if (std::isnan(logit) || logit == HUGE_VALF)
      throw Error(concat("the model's logits hold ", logit))
          .hint("its weights are damaged, or its training has diverged");
  const auto found = std::max_element(logits.begin(), logits.end());
  if (found == logits.end() || *found == -HUGE_VALF) throw Error("there is no token to choose from");
  return static_cast<int32_t>(found - logits.begin());
}

}  // namespace

void check(const Sampling& sampling) {
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature))
    throw Error(concat("the temperature is ", sampling.temperature)).expected("0 or more");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1))
    throw Error(concat("top_p is ", sampling.top_p)).expected("more than 0, up to 1");
}

int32_t choose_token(std::span<const float> logits, const Sampling& sampling, double uniform) {
  check(sampling);
  const int32_t best = likeliest(logits);
  if (sampling.temperature == 0) return best;
  const double highest = logits[best];
  std::vector<double> weights(logits.size());
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = std::exp((logits[i] - highest) / sampling.temperature);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  if (sampling.top_p < 1) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
    const double limit = sampling.top_p * std::accumulate(weights.begin(), weights.end(), 0.0);
    size_t kept = 0;
    for (double sum = 0; kept < order.size() && sum < limit; ++kept) sum += weights[order[kept]];
    order.resize(std::max<size_t>(kept, 1));
  }
  double total = 0;
  for (int32_t i : order) total += weights[i];
  double left = uniform * total;
  int32_t chosen = best;  // if rounding leaves more than there is
  for (int32_t i : order) {
    if (weights[i] == 0) continue;
    chosen = i;
    left -= weights[i];
    if (left < 0) break;
  }
  return chosen;
}

}  // namespace kumi
