// ViewAttention: softmax(Q K^T / sqrt(E)) V inside each view, in 16 bits: twice as many products a cycle as in fp32, and
// exact beside the 8 bits of the products around it.
//
// Input: queries, keys and values side by side, fp32 [V, N, 3 D]. Output: fp32 [V, N, D]. Attribute: heads.
// Each query and key is rounded to 5,000 steps of its own largest value, each channel of the values to 1,023 of its own,
// the exponentials to 32,767 of the largest of a panel: a key that draws nearly all attention to itself costs only its
// neighbours precision. What a query gives to all keys together is 1 after rounding.
//
// Shapes:  V views · N tokens of each · D width · E head dim · P panels of 64 keys · C columns of 16 channels
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "call.h"
#include "products.h"
#include "view_rounding.h"
#if POCKETVLM_TILES
#include "view_tiles.h"
#endif

namespace pocketvlm {

class ViewAttention {
 public:
  static constexpr const char* kName = "ViewAttention";
  static constexpr size_t kInputs = 1, kRequired = 1, kOutputs = 1;
  static int input_type(size_t) { return ort::kFloat; }

  ort::Status read(const ort::Api& api, const ort::Info* info) {
    if (auto status = api.attribute(info, "heads", &heads_)) return status;
    return heads_ > 0 ? nullptr : api.error(ort::kInvalidArgument, "ViewAttention: attributes that do not fit each other");
  }

  ort::Status compute(const ort::Api& api, ort::Context* context) const {
    Tensor joined;
    if (auto status = pocketvlm::read(api, context, 0, &joined)) return status;
    const int64_t width = joined.last() / 3, dim = width / heads_;
    if (joined.count != 3 || joined.last() != 3 * dim * heads_ || dim < 2 || dim % 2 || dim > kMostDim)
      return api.error(ort::kInvalidArgument, "ViewAttention: inputs that do not fit each other");
    Tensor out = joined;
    out.dimensions[2] = width;
    if (auto status = allocate(api, context, 0, &out)) return status;
    const int64_t tokens = joined.dimensions[1];
    if (!tokens) return nullptr;
    std::atomic<bool> is_full{false};
#if POCKETVLM_TILES
    const auto on_tiles = [&](int64_t task) {
      static thread_local TiledView scratch;
      const int64_t view = task / heads_, head = task % heads_;
      const float* q = joined.as<float>() + view * tokens * 3 * width + head * dim;
      float* to = out.as<float>() + view * tokens * width + head * dim;
      if (!scratch.grow(tokens, dim)) return is_full.store(true);
      scratch.pack(q + width, q + 2 * width, 3 * width);
      for (int64_t first = 0; first < tokens; first += TiledView::kQueries) {
        const int64_t count = std::min(TiledView::kQueries, tokens - first);
        for (int64_t t = first + count; t < std::min(first + 2 * count, tokens); ++t) ask_for(q + t * 3 * width, dim);
        scratch.attend(q + first * 3 * width, 3 * width, count, to + first * width, width);
      }
    };
    if (TiledView::suits(tokens)) {
      if (auto status = parallel_for(api, context, joined.dimensions[0] * heads_, on_tiles)) return status;
      return is_full ? api.error(ort::kFail, "ViewAttention: out of memory") : nullptr;
    }
#endif
    const auto run = [&](int64_t task) {
      static thread_local Scratch scratch;
      const int64_t view = task / heads_, head = task % heads_;
      const float* q = joined.as<float>() + view * tokens * 3 * width + head * dim;
      float* to = out.as<float>() + view * tokens * width + head * dim;
      if (!scratch.resize(tokens, dim)) return is_full.store(true);
      scratch.pack(q + width, q + 2 * width, 3 * width);
      for (int64_t first = 0; first < tokens; first += kTile)
        (dim <= 64 ? attend<4> : attend<5>)(scratch, q + first * 3 * width, 3 * width, std::min(kTile, tokens - first),
                                            to + first * width, width);
    };
    if (auto status = parallel_for(api, context, joined.dimensions[0] * heads_, run)) return status;
    return is_full ? api.error(ort::kFail, "ViewAttention: out of memory") : nullptr;
  }

 private:
  static constexpr int64_t kTile = 5;  // queries at once: 25 sums, 5 registers of keys or values
  static constexpr int64_t kKeys = kViewKeys;

  // Keys and values of one head as they are read, and room for a tile.
  struct Scratch {
    int64_t tokens, dim, panels;
    std::vector<int16_t> keys;                   // [P, E / 2, 64, 2]
    std::vector<int32_t> values;                 // [N / 2, C * 16], two keys in each
    std::vector<float> key_scales, scores;       // [P * 64]; [5, P * 64]
    std::vector<float> peaks, totals;            // [5, P]: the largest score of a panel, then its weight; its parts' sum
    std::vector<int16_t> parts;                  // [5, P * 64]
    float value_scales[kMostDim];
    float nothing;  // 0, or NaN where a key is not finite: the largest score would forget it

    bool resize(int64_t count, int64_t head) try {
      tokens = count, dim = head, panels = (count + kKeys - 1) / kKeys;
      keys.assign(panels * kKeys * dim, 0);
      values.resize(panels * kKeys / 2 * columns() * kLanes);
      key_scales.assign(panels * kKeys, 0.0f);
      scores.resize(kTile * panels * kKeys);
      parts.resize(kTile * panels * kKeys);
      peaks.assign(kTile * panels + kLanes, 0.0f);
      totals.resize(panels);
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }

    int64_t columns() const { return dim <= 64 ? 4 : 5; }

    // `k` and `v` [N, E] with rows `stride` apart.
    void pack(const float* k, const float* v, int64_t stride) {
      alignas(64) int16_t row[kMostDim + kLanes];
      nothing = 0.0f;
      for (int64_t j = 0; j < tokens; ++j) {
        ask_for(k + std::min(j + kAhead, tokens - 1) * stride, dim), ask_for(v + j * stride, dim);
        key_scales[j] = round_row(k + j * stride, dim, row);
        nothing += key_scales[j] * 0.0f;
        int16_t* to = keys.data() + j / kKeys * kKeys * dim + j % kKeys * 2;
        for (int64_t e = 0; e < dim; e += 2) std::memcpy(to + e * kKeys, row + e, 4);
      }
      for (int64_t c = 0; c < columns(); ++c) {
        const ValueColumn column(v + c * kLanes, stride, tokens, first_lanes(dim - c * kLanes));
        store(value_scales + c * kLanes, column.scales);
        for (int64_t j = 0; j < panels * kKeys; j += 2)
          store(values.data() + (j / 2 * columns() + c) * kLanes, in_pairs(column.rounded(j), column.rounded(j + 1)));
      }
    }
  };

  // `count` queries, at most 5, of rows `stride` apart, to rows `out_stride` apart.
  template <int kColumns>
  static void attend(Scratch& s, const float* q, int64_t stride, int64_t count, float* out, int64_t out_stride) {
    alignas(64) int16_t rows[kTile * (kMostDim + kLanes)] = {};
    alignas(64) int32_t sums[kTile * kMostDim];
    constexpr int64_t row_stride = kMostDim + kLanes;
    float factors[kTile];
    for (int64_t t = 0; t < count; ++t)
      factors[t] = s.nothing + round_row(q + t * stride, s.dim, rows + t * row_stride) / std::sqrt(1.0f * s.dim);
    const int64_t length = s.panels * kKeys;
    for (int64_t p = 0; p < s.panels; ++p) {
      const auto* keys = reinterpret_cast<const int32_t*>(s.keys.data() + p * kKeys * s.dim);
      multiply_pairs<4, kTile>(rows, row_stride, keys, s.dim / 2, sums);
      Floats most[kTile];
      std::fill_n(most, count, all(-INFINITY));
      for (int64_t j = 0; j < kKeys; j += kLanes) {
        const int64_t key = p * kKeys + j;
        const Floats scale = load(s.key_scales.data() + key);
        const Lanes known = first_lanes(s.tokens - key);
        for (int64_t t = 0; t < count; ++t) {
          const Floats score = multiply(to_floats(load(sums + t * kKeys + j)), scale);
          store(s.scores.data() + t * length + key, score);
          most[t] = choose(known, most[t], larger(most[t], score));
        }
      }
      for (int64_t t = 0; t < count; ++t) s.peaks[t * s.panels + p] = largest_of(most[t]);
    }
    float shares[kTile];
    for (int64_t t = 0; t < count; ++t) {
      float* peaks = s.peaks.data() + t * s.panels;
      const float largest = *std::max_element(peaks, peaks + s.panels);
      const Floats factor = all(factors[t]);
      for (int64_t p = 0; p < s.panels; ++p) {
        const Floats peak = all(peaks[p]);
        Ints sum = all(0);
        for (int64_t j = p * kKeys; j < (p + 1) * kKeys; j += kLanes) {
          const Floats score = subtract(load(s.scores.data() + t * length + j), peak);
          const Floats part = multiply(exponential(multiply(score, factor)), all(kParts));
          const Ints rounded = only(first_lanes(s.tokens - j), to_ints(part));
          sum = add(sum, rounded);
          store_halves(s.parts.data() + t * length + j, rounded);
        }
        s.totals[p] = sum_of(sum);
      }
      for (int64_t p = 0; p < s.panels; p += kLanes) {
        const Floats weights = exponential(multiply(subtract(load(peaks + p), all(largest)), factor));
        store(peaks + p, weights, first_lanes(s.panels - p));
      }
      float total = factors[t] * 0.0f;  // NaN where something is not finite: exponentials forget it
      for (int64_t p = 0; p < s.panels; ++p) total = std::fma(peaks[p], s.totals[p], total);
      shares[t] = 1.0f / total;
    }
    alignas(64) float totals[kTile * kColumns * kLanes] = {};
    for (int64_t p = 0; p < s.panels; ++p) {
      const int32_t* values = s.values.data() + p * kKeys / 2 * kColumns * kLanes;
      multiply_pairs<kColumns, kTile>(s.parts.data() + p * kKeys, length, values, kKeys / 2, sums);
      for (int64_t t = 0; t < count; ++t) {
        const Floats weight = all(s.peaks[t * s.panels + p]);
        for (int64_t i = t * kColumns * kLanes; i < (t + 1) * kColumns * kLanes; i += kLanes)
          store(totals + i, multiply_add(to_floats(load(sums + i)), weight, load(totals + i)));
      }
    }
    for (int64_t t = 0; t < count; ++t)
      for (int64_t c = 0; c < kColumns; ++c) {
        const Floats scale = multiply(load(s.value_scales + c * kLanes), all(shares[t]));
        const Floats value = multiply(load(totals + (t * kColumns + c) * kLanes), scale);
        store(out + t * out_stride + c * kLanes, value, first_lanes(s.dim - c * kLanes));
      }
  }

  int64_t heads_ = 0;
};

}  // namespace pocketvlm
