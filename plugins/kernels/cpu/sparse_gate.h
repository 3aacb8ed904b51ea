// SparseGate on one instruction set.
//
//   table [N, P] of V ([N, 2P] for swiglu); addresses [tokens, K]; x [tokens, P] of T; gate [tokens, K] of T
//   scratch: the token's x as float, see gate_scratch.h
//
// A group's products come first and then their activation, a vector at a time, so that nothing but products stands
// between reads of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "activations.h"
#include "gate_scratch.h"
#include "row_products.h"

namespace ultramem {
namespace {

template <typename V, typename T>
class SparseGate {
 public:
  SparseGate(const UltramemSparseGate& problem, void* scratch)
      : p_(problem),
        s_(problem, scratch),
        rows_(problem.table, problem.addresses, true),
        ahead_(rows_ahead(rows_.row_bytes(), RowGroup::kMostAhead)) {}

  void run(UltramemRange pairs) {
    read(*now_, pairs.begin, pairs.end);
    request_first();
    for (std::int64_t pair = pairs.begin; pair < pairs.end; std::swap(now_, next_)) {
      const std::int64_t first = pair;
      pair += now_->count;
      read(*next_, pair, pairs.end);
      extend();
      multiply_group();
      activate();
      convert(products_[0], static_cast<T*>(p_.gate) + first, now_->count);
    }
  }

 private:
  static_assert(RowGroup::kMost % kTogether == 0 && RowGroup::kMost % Simd::kWidth == 0);

  void read(RowGroup& group, std::int64_t begin, std::int64_t end) const {
    rows_.read(group, begin, std::min(end, begin + RowGroup::kMost));
  }

  void request_first() const {
    for (std::int64_t i = 0; i < std::min(ahead_, now_->count); ++i) {
      prefetch(now_->data[i], Stored<V>::bytes(p_.table.width));
    }
    if constexpr (kCoded<V>) {
      for (std::int64_t i = 0; i < now_->count; ++i) __builtin_prefetch(now_->scale[i]);
    }
  }

  // Puts the next group's first rows behind the group's. Where there are none, a row that is in the cache already.
  void extend() {
    const char** behind = now_->data + now_->count;
    for (std::int64_t i = 0; i < ahead_; ++i) behind[i] = i < next_->count ? next_->data[i] : behind[-1];
  }

  void multiply_group() {
    for (std::int64_t i = 0; i < now_->count;) {
      const std::int64_t token = now_->position[i] / p_.slots, done = now_->position[i] % p_.slots;
      const std::int64_t last = std::min(now_->count, i + p_.slots - done);
      if (token != token_) lay_out(token);
      multiply(i, last);
      i = last;
    }
  }

  // The token's x, in the order in which load_pair gives numbers of V, zeros around it.
  void lay_out(std::int64_t token) {
    constexpr std::int64_t kPair = 2 * Simd::kWidth;
    token_ = token;
    for (const GatePart* part = s_.part; part != s_.part + s_.parts; ++part) {
      if (part != s_.part && part->x == s_.part->x) continue;
      const std::int64_t end = (part->count + kPair - 1) / kPair * kPair;
      std::memset(part->x, 0, static_cast<std::size_t>(end) * sizeof(float));
      convert(static_cast<const T*>(p_.x) + token * p_.x_width, part->x + part->lead, p_.x_width);
      if constexpr (!std::is_same_v<V, Int4>) continue;
      for (float* x = part->x; x != part->x + end; x += kPair) store_sums(as_stored<V>(load_sums(x)), x);
    }
  }

  void multiply(std::int64_t first, std::int64_t last) {
    for (int p = 0; p < s_.parts; ++p) {
      const GatePart& part = s_.part[p];
      const Columns columns = {*now_, Stored<V>::offset(part.column), part.count, ahead_, next_->scale};
      multiply_run<V>(columns, first, last, part.x, products_[p]);
    }
  }

  void activate() {
    for (int p = 0; kCoded<V> && p < s_.parts; ++p) {
      for (std::int64_t i = 0; i < now_->count; ++i) products_[p][i] *= rows_.scale(*now_, i);
    }
    switch (p_.activation) {
      case ULTRAMEM_GELU:
        return for_each_vector([](Vector first, Vector) { return gelu(first); });
      case ULTRAMEM_SILU:
        return for_each_vector([](Vector first, Vector) { return silu(first); });
      case ULTRAMEM_SWIGLU:
        return for_each_vector([](Vector first, Vector last) { return ultramem::multiply(silu(first), last); });
      case ULTRAMEM_NONE:
        break;
    }
  }

  template <typename Function>
  void for_each_vector(const Function& function) {
    for (std::int64_t i = 0; i < now_->count; i += Simd::kWidth) {
      Simd::store(products_[0] + i, function(Simd::load(products_[0] + i), Simd::load(products_[1] + i)));
    }
  }

  const UltramemSparseGate& p_;
  GateScratch s_;
  TableRows<V> rows_;
  std::int64_t ahead_;
  std::int64_t token_ = -1;  // whose x is laid out
  RowGroup groups_[2];
  RowGroup* now_ = &groups_[0];
  RowGroup* next_ = &groups_[1];
  float products_[2][RowGroup::kMost + kTogether] = {};  // the rows' own; then the first ones their gates
};

template <typename V, typename T>
UltramemStatus sparse_gate(const UltramemSparseGate& problem, UltramemRange pairs, void* scratch) {
  const std::int64_t limit = problem.table.rows > 0 ? INT64_MAX : 0;
  const UltramemStatus status = check_addresses(problem.addresses, pairs.begin, pairs.end, problem.slots, limit);
  if (status.code == ULTRAMEM_OK) SparseGate<V, T>(problem, scratch).run(pairs);
  return status;
}

template <typename T>
UltramemStatus sparse_gate_of(const UltramemSparseGate& problem, UltramemRange pairs, void* scratch) {
  switch (problem.table.type) {
    case ULTRAMEM_FLOAT32:
      return sparse_gate<float, T>(problem, pairs, scratch);
    case ULTRAMEM_FLOAT16:
      return sparse_gate<Half, T>(problem, pairs, scratch);
    case ULTRAMEM_BFLOAT16:
      return sparse_gate<BFloat16, T>(problem, pairs, scratch);
    case ULTRAMEM_INT8:
      return sparse_gate<Int8, T>(problem, pairs, scratch);
    case ULTRAMEM_INT4:
      return sparse_gate<Int4, T>(problem, pairs, scratch);
    case ULTRAMEM_FLOAT8_E4M3:
      return sparse_gate<Float8, T>(problem, pairs, scratch);
  }
  return {ULTRAMEM_UNSUPPORTED_TYPE, 0, 0, 0};
}

inline UltramemStatus sparse_gate_any(const UltramemSparseGate& problem, UltramemRange pairs, void* scratch) {
  return problem.type == ULTRAMEM_FLOAT32 ? sparse_gate_of<float>(problem, pairs, scratch)
                                          : sparse_gate_of<Half>(problem, pairs, scratch);
}

}  // namespace
}  // namespace ultramem
