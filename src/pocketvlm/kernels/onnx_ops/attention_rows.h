// Attention of few new tokens, as steps have: in fp32, keys and values read once for all heads of a group.
//
// A stretch of keys gives, for each row, the largest score, the sum of the exponentials and the sum of the values by
// them; stretches begin at multiples of kStretch, so that the result does not depend on how many threads share them.
//
// Shapes:  R rows · E head dim · S new tokens, each of which has R / S rows
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vector_math.h"

namespace pocketvlm {

constexpr int64_t kStretch = 512;

// The queries of a sequence that share a head of keys and values.
struct Queries {
  const float* from;                 // row r is at [r / shared * stride + r % shared * dim]
  float* to;                         // likewise
  const float *keys, *values;        // [., E]
  int64_t stride, dim, shared, count, before;  // `count` new tokens behind `before` others; `shared` rows of each

  int64_t rows() const { return shared * count; }
  int64_t place(int64_t row) const { return row / shared * stride + row % shared * dim; }
  // Keys that a row sees.
  int64_t visible(int64_t row) const { return before + row / shared + 1; }
};

inline int64_t stretches(const Queries& q) { return (q.before + q.count + kStretch - 1) / kStretch; }

// At most kKeysAtOnce keys for rows `first` to `first + kRows`, added to their states [R, E + 2]: the sums of values, then
// the largest score and the sum of exponentials.
template <int kRows>
void attend_some(const Queries& q, int64_t first, int64_t key, int64_t keys, float* states) {
  constexpr int64_t kKeysAtOnce = 64;
  const int64_t dim = q.dim, width = dim + 2;
  const float size = 1.0f / std::sqrt(static_cast<float>(dim));
  const float* rows[kRows];
  for (int t = 0; t < kRows; ++t) rows[t] = q.from + q.place(first + t);
  for (; keys > 0; key += kKeysAtOnce, keys -= kKeysAtOnce) {
    const int64_t count = std::min(keys, kKeysAtOnce);
    alignas(64) float scores[kRows][kKeysAtOnce];
    for (int64_t j = 0; j < count; ++j) {
      Floats sums[kRows];
      std::fill_n(sums, kRows, all(0.0f));
      for (int64_t e = 0; e < dim; e += kLanes) {
        const Floats some = load(q.keys + (key + j) * dim + e);
        for (int t = 0; t < kRows; ++t) sums[t] = multiply_add(some, load(rows[t] + e), sums[t]);
      }
      for (int t = 0; t < kRows; ++t) scores[t][j] = sum_of(sums[t]) * size;
    }
    int64_t seen[kRows];  // keys of these
    for (int t = 0; t < kRows; ++t) {
      const int64_t visible = seen[t] = std::clamp<int64_t>(q.visible(first + t) - key, 0, count);
      std::fill(scores[t] + visible, scores[t] + kKeysAtOnce, -INFINITY);
      float* state = states + (first + t) * width;
      const float largest = std::max(state[dim], *std::max_element(scores[t], scores[t] + kKeysAtOnce));
      if (largest > state[dim]) {
        const float scale = std::exp(state[dim] - largest);
        for (int64_t e = 0; e < dim; e += kLanes) store(state + e, multiply(load(state + e), all(scale)));
        state[dim] = largest, state[dim + 1] *= scale;
      }
      Floats sum = all(0.0f);
      for (int64_t j = 0; j < visible; ++j) state[dim + 1] += 0.0f * scores[t][j];  // NaN, if one is no number
      for (int64_t j = 0; j < kKeysAtOnce; j += kLanes) {
        // Keys that are not seen, or not there, have the smallest exponential that there is, and are left out.
        const Floats part = exponential(subtract(load(scores[t] + j), all(visible ? largest : 0.0f)));
        const Floats known = choose(first_lanes(visible - j), all(0.0f), part);
        store(scores[t] + j, known);
        sum = add(sum, known);
      }
      state[dim + 1] += sum_of(sum);
    }
    for (int64_t e = 0; e < dim; e += kLanes) {
      Floats sums[kRows];
      for (int t = 0; t < kRows; ++t) sums[t] = load(states + (first + t) * width + e);
      // What a row does not see it has no share of, not even one of 0: it may be no number. Later rows see more.
      for (int64_t j = 0; j < seen[0]; ++j) {
        const Floats some = load(q.values + (key + j) * dim + e);
        for (int t = 0; t < kRows; ++t) sums[t] = multiply_add(some, all(scores[t][j]), sums[t]);
      }
      for (int t = 1; t < kRows; ++t)
        for (int64_t j = seen[0]; j < seen[t]; ++j)
          sums[t] = multiply_add(load(q.values + (key + j) * dim + e), all(scores[t][j]), sums[t]);
      for (int t = 0; t < kRows; ++t) store(states + (first + t) * width + e, sums[t]);
    }
  }
}

// All rows over one stretch of keys, to `states` [R, E + 2].
inline void attend_stretch(const Queries& q, int64_t stretch, float* states) {
  const int64_t rows = q.rows(), key = stretch * kStretch, keys = std::min(kStretch, q.before + q.count - key);
  std::fill_n(states, rows * (q.dim + 2), 0.0f);
  for (int64_t row = 0; row < rows; ++row) states[row * (q.dim + 2) + q.dim] = -INFINITY;
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) attend_some<4>(q, row, key, keys, states);
  for (; row < rows; ++row) attend_some<1>(q, row, key, keys, states);
}

// What `count` stretches found, to the rows of the output. The first of them has a key that each row sees.
inline void join_stretches(const Queries& q, const float* states, int64_t count) {
  const int64_t width = q.dim + 2, next = q.rows() * width;
  for (int64_t row = 0; row < q.rows(); ++row) {
    const float* state = states + row * width;
    float largest = -INFINITY, total = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, state[i * next + q.dim]);
    for (int64_t i = 0; i < count; ++i) total += state[i * next + q.dim + 1] * std::exp(state[i * next + q.dim] - largest);
    float* out = q.to + q.place(row);
    std::fill_n(out, q.dim, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const Floats share = all(std::exp(state[i * next + q.dim] - largest) / total);
      for (int64_t e = 0; e < q.dim; e += kLanes)
        store(out + e, multiply_add(load(state + i * next + e), share, load(out + e)));
    }
  }
}

}  // namespace pocketvlm
