// Softmax attention inside a view on vectors, see view_attention.h.
//
// Shapes:  N tokens · E head dim · P panels of 64 keys · C columns of 16 channels
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "products.h"
#include "view_rounding.h"

namespace pocketvlm {

// Keys and values of one head as they are read, and room for a few queries.
class VectorView {
 public:
  static constexpr int64_t kQueries = 5;  // at once: 25 sums, 5 registers of keys or values

  // Room for so many tokens; false where there is none.
  bool grow(int64_t count, int64_t head) try {
    tokens_ = count, dim_ = head, panels_ = (count + kViewKeys - 1) / kViewKeys;
    keys_.assign(panels_ * kViewKeys * dim_, 0);
    values_.resize(panels_ * kViewKeys / 2 * columns() * kLanes);
    key_scales_.assign(panels_ * kViewKeys, 0.0f);
    scores_.resize(kQueries * panels_ * kViewKeys);
    parts_.resize(kQueries * panels_ * kViewKeys);
    peaks_.assign(kQueries * panels_ + kLanes, 0.0f);
    totals_.resize(panels_);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }

  // `k` and `v` [N, E] with rows `stride` apart.
  void pack(const float* k, const float* v, int64_t stride) {
    alignas(64) int16_t row[kMostDim + kLanes];
    nothing_ = 0.0f;
    for (int64_t j = 0; j < tokens_; ++j) {
      ask_for(k + std::min(j + kAhead, tokens_ - 1) * stride, dim_), ask_for(v + j * stride, dim_);
      key_scales_[j] = round_row(k + j * stride, dim_, row);
      nothing_ += key_scales_[j] * 0.0f;
      int16_t* to = keys_.data() + j / kViewKeys * kViewKeys * dim_ + j % kViewKeys * 2;
      for (int64_t e = 0; e < dim_; e += 2) std::memcpy(to + e * kViewKeys, row + e, 4);
    }
    for (int64_t c = 0; c < columns(); ++c) {
      const ValueColumn column(v + c * kLanes, stride, tokens_, first_lanes(dim_ - c * kLanes));
      store(value_scales_ + c * kLanes, column.scales);
      for (int64_t j = 0; j < panels_ * kViewKeys; j += 2)
        store(values_.data() + (j / 2 * columns() + c) * kLanes, in_pairs(column.rounded(j), column.rounded(j + 1)));
    }
  }

  // `count` queries, at most 5, of rows `stride` apart, to rows `out_stride` apart.
  void attend(const float* q, int64_t stride, int64_t count, float* out, int64_t out_stride) {
    columns() == 4 ? attend_in<4>(q, stride, count, out, out_stride) : attend_in<5>(q, stride, count, out, out_stride);
  }

 private:
  int64_t columns() const { return dim_ <= 64 ? 4 : 5; }

  template <int kColumns>
  void attend_in(const float* q, int64_t stride, int64_t count, float* out, int64_t out_stride) {
    alignas(64) int16_t rows[kQueries * (kMostDim + kLanes)] = {};
    alignas(64) int32_t sums[kQueries * kMostDim];
    constexpr int64_t row_stride = kMostDim + kLanes;
    float factors[kQueries];
    for (int64_t t = 0; t < count; ++t)
      factors[t] = nothing_ + round_row(q + t * stride, dim_, rows + t * row_stride) / std::sqrt(1.0f * dim_);
    const int64_t length = panels_ * kViewKeys;
    for (int64_t p = 0; p < panels_; ++p) {
      const auto* keys = reinterpret_cast<const int32_t*>(keys_.data() + p * kViewKeys * dim_);
      multiply_pairs<4, kQueries>(rows, row_stride, keys, dim_ / 2, sums);
      Floats most[kQueries];
      std::fill_n(most, count, all(-INFINITY));
      for (int64_t j = 0; j < kViewKeys; j += kLanes) {
        const int64_t key = p * kViewKeys + j;
        const Floats scale = load(key_scales_.data() + key);
        const Lanes known = first_lanes(tokens_ - key);
        for (int64_t t = 0; t < count; ++t) {
          const Floats score = multiply(to_floats(load(sums + t * kViewKeys + j)), scale);
          store(scores_.data() + t * length + key, score);
          most[t] = choose(known, most[t], larger(most[t], score));
        }
      }
      for (int64_t t = 0; t < count; ++t) peaks_[t * panels_ + p] = largest_of(most[t]);
    }
    float shares[kQueries];
    for (int64_t t = 0; t < count; ++t) {
      float* peaks = peaks_.data() + t * panels_;
      const float largest = *std::max_element(peaks, peaks + panels_);
      const Floats factor = all(factors[t]);
      for (int64_t p = 0; p < panels_; ++p) {
        const Floats peak = all(peaks[p]);
        Ints sum = all(0);
        for (int64_t j = p * kViewKeys; j < (p + 1) * kViewKeys; j += kLanes) {
          const Floats score = subtract(load(scores_.data() + t * length + j), peak);
          const Floats part = multiply(exponential(multiply(score, factor)), all(kParts));
          const Ints rounded = only(first_lanes(tokens_ - j), to_ints(part));
          sum = add(sum, rounded);
          store_halves(parts_.data() + t * length + j, rounded);
        }
        totals_[p] = sum_of(sum);
      }
      for (int64_t p = 0; p < panels_; p += kLanes) {
        const Floats weights = exponential(multiply(subtract(load(peaks + p), all(largest)), factor));
        store(peaks + p, weights, first_lanes(panels_ - p));
      }
      float total = factors[t] * 0.0f;  // NaN where something is not finite: exponentials forget it
      for (int64_t p = 0; p < panels_; ++p) total = std::fma(peaks[p], totals_[p], total);
      shares[t] = 1.0f / total;
    }
    alignas(64) float totals[kQueries * kColumns * kLanes] = {};
    for (int64_t p = 0; p < panels_; ++p) {
      const int32_t* values = values_.data() + p * kViewKeys / 2 * kColumns * kLanes;
      multiply_pairs<kColumns, kQueries>(parts_.data() + p * kViewKeys, length, values, kViewKeys / 2, sums);
      for (int64_t t = 0; t < count; ++t) {
        const Floats weight = all(peaks_[t * panels_ + p]);
        for (int64_t i = t * kColumns * kLanes; i < (t + 1) * kColumns * kLanes; i += kLanes)
          store(totals + i, multiply_add(to_floats(load(sums + i)), weight, load(totals + i)));
      }
    }
    for (int64_t t = 0; t < count; ++t)
      for (int64_t c = 0; c < kColumns; ++c) {
        const Floats scale = multiply(load(value_scales_ + c * kLanes), all(shares[t]));
        const Floats value = multiply(load(totals + (t * kColumns + c) * kLanes), scale);
        store(out + t * out_stride + c * kLanes, value, first_lanes(dim_ - c * kLanes));
      }
  }

  int64_t tokens_ = 0, dim_ = 0, panels_ = 0;
  std::vector<int16_t> keys_;              // [P, E / 2, 64, 2]
  std::vector<int32_t> values_;            // [N / 2, C * 16], two keys in each
  std::vector<float> key_scales_, scores_;  // [P * 64]; [5, P * 64]
  std::vector<float> peaks_, totals_;      // [5, P]: the largest score of a panel, then its weight; its parts' sum
  std::vector<int16_t> parts_;             // [5, P * 64]
  float value_scales_[kMostDim];
  float nothing_ = 0.0f;  // 0, or NaN where a key is not finite: the largest score would forget it
};

}  // namespace pocketvlm
