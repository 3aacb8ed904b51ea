#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "failure.h"

namespace ultramem::runtime {
namespace {

void check(bool good, const char* option, double found, const char* expected) {
  require(good, ULTRAMEM_CODE_INVALID,
          std::string(option) + ": expected " + expected + ", found " + std::to_string(found));
}

}  // namespace

Sampler::Sampler(const UltramemGenerateOptions& options, std::size_t sequence)
    : temperature_(options.temperature),
      top_p_(options.top_p),
      penalty_(options.repetition_penalty),
      top_k_(options.top_k),
      random_(options.seed + sequence) {
  check(std::isfinite(temperature_) && temperature_ >= 0, "temperature", temperature_, "0 or more");
  check(top_p_ > 0 && top_p_ <= 1, "top_p", top_p_, "more than 0, at most 1");
  check(std::isfinite(penalty_) && penalty_ > 0, "repetition_penalty", penalty_, "more than 0");
  check(top_k_ >= 0, "top_k", static_cast<double>(top_k_), "0 or more");
}

void Sampler::saw(std::int64_t token) {
  if (penalty_ == 1) return;
  const auto at = std::lower_bound(seen_.begin(), seen_.end(), token);
  if (at == seen_.end() || *at != token) seen_.insert(at, token);
}

std::int64_t Sampler::next(const float* logits, std::int64_t vocab_size) {
  if (penalty_ == 1 && temperature_ == 0) return std::max_element(logits, logits + vocab_size) - logits;
  std::vector<float> changed(logits, logits + vocab_size);
  penalise(changed);
  if (temperature_ == 0) return std::max_element(changed.begin(), changed.end()) - changed.begin();
  return draw(changed);
}

void Sampler::penalise(std::vector<float>& logits) const {
  for (const std::int64_t token : seen_) {
    float& logit = logits[static_cast<std::size_t>(token)];
    logit = logit > 0 ? logit / penalty_ : logit * penalty_;
  }
}

std::int64_t Sampler::draw(const std::vector<float>& logits) {
  std::vector<std::int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  // By logit, ties by token, so that the order does not depend on the sort.
  const auto above = [&](std::int64_t a, std::int64_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (top_k_ > 0 && top_k_ < static_cast<std::int64_t>(order.size())) {
    std::nth_element(order.begin(), order.begin() + top_k_, order.end(), above);
    order.resize(static_cast<std::size_t>(top_k_));
  }
  std::sort(order.begin(), order.end(), above);
  const float best = logits[static_cast<std::size_t>(order[0])];
  std::vector<double> weights;
  double total = 0;
  for (const std::int64_t token : order) {
    weights.push_back(std::exp(static_cast<double>(logits[static_cast<std::size_t>(token)] - best) / temperature_));
    total += weights.back();
  }
  // The first tokens whose mass reaches top_p; then one of them.
  std::size_t kept = 0;
  double mass = 0;
  while (kept < weights.size() && (kept == 0 || mass < top_p_ * total)) mass += weights[kept++];
  // 53 bits as a number in [0, 1): std::uniform_real_distribution differs from library to library.
  double at = static_cast<double>(random_() >> 11) * 0x1p-53 * mass;
  std::size_t chosen = 0;
  while (chosen + 1 < kept && at >= weights[chosen]) at -= weights[chosen++];
  return order[chosen];
}

}  // namespace ultramem::runtime
