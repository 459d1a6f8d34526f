// ViewAttention: softmax(Q K^T / sqrt(E)) V inside each view, in 16 bits, on AVX-512 with VNNI: twice as many products a
// cycle as in fp32, and exact beside the 8 bits of the products around it.
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
#include <utility>
#include <vector>

#include "call.h"
#include "vector_math.h"

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
  static constexpr int64_t kTile = 5;                       // queries at once: 25 sums, 5 registers of keys or values
  static constexpr int64_t kKeys = 64, kMostDim = 80;       // of a panel; of a head
  static constexpr float kSteps = 5000;                     // 80 products of two of them fit into 32 bits
  static constexpr float kParts = 32767, kValueSteps = 1023;  // kKeys products of these do too

  // Keys and values of one head as they are read, and room for a tile.
  struct Scratch {
    int64_t tokens, dim, panels;
    std::vector<int16_t> keys;                   // [P, E / 2, 64, 2]
    std::vector<int32_t> values;                 // [N / 2, C * 16], two keys in each
    std::vector<float> key_scales, scores;       // [P * 64]; [5, P * 64]
    std::vector<float> peaks;                    // [5, P]: the largest score of a panel, then its exponential
    std::vector<int16_t> parts;                  // [5, P * 64]
    float value_scales[kMostDim];

    bool resize(int64_t count, int64_t head) try {
      tokens = count, dim = head, panels = (count + kKeys - 1) / kKeys;
      keys.assign(panels * kKeys * dim, 0);
      values.resize(panels * kKeys / 2 * columns() * kLanes);
      key_scales.assign(panels * kKeys, 0.0f);
      scores.resize(kTile * panels * kKeys);
      parts.resize(kTile * panels * kKeys);
      peaks.resize(kTile * panels);
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }

    int64_t columns() const { return dim <= 64 ? 4 : 5; }

    // `k` and `v` [N, E] with rows `stride` apart.
    void pack(const float* k, const float* v, int64_t stride) {
      alignas(64) int16_t row[kMostDim + kLanes];
      for (int64_t j = 0; j < tokens; ++j) {
        key_scales[j] = round_row(k + j * stride, dim, row);
        int16_t* to = keys.data() + j / kKeys * kKeys * dim + j % kKeys * 2;
        for (int64_t e = 0; e < dim; e += 2) std::memcpy(to + e * kKeys, row + e, 4);
      }
      for (int64_t c = 0; c < columns(); ++c) {
        const __mmask16 mask = lanes(dim - c * kLanes);
        __m512 most = _mm512_set1_ps(1e-30f);
        for (int64_t j = 0; j < tokens; ++j)
          most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, v + j * stride + c * kLanes)));
        _mm512_storeu_ps(value_scales + c * kLanes, _mm512_mul_ps(most, _mm512_set1_ps(1 / kValueSteps)));
        const __m512 steps = _mm512_div_ps(_mm512_set1_ps(kValueSteps), most);
        const auto rounded = [&](int64_t j) {
          const __mmask16 known = j < tokens ? mask : 0;
          return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(known, v + j * stride + c * kLanes), steps));
        };
        for (int64_t j = 0; j < panels * kKeys; j += 2) {
          const __m512i low = _mm512_and_si512(rounded(j), _mm512_set1_epi32(0xffff));
          const __m512i both = _mm512_or_si512(low, _mm512_slli_epi32(rounded(j + 1), 16));
          _mm512_storeu_si512(values.data() + (j / 2 * columns() + c) * kLanes, both);
        }
      }
    }
  };

  static __mmask16 lanes(int64_t count) { return (1u << std::clamp<int64_t>(count, 0, kLanes)) - 1; }

  // To kSteps of its largest value; returns what a step is.
  static float round_row(const float* x, int64_t count, int16_t* out) {
    __m512 most = _mm512_set1_ps(1e-30f);
    for (int64_t e = 0; e < count; e += kLanes)
      most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(count - e), x + e)));
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 steps = _mm512_set1_ps(kSteps / largest);
    for (int64_t e = 0; e < count; e += kLanes) {
      const __m512 values = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(count - e), x + e), steps);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + e), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(values)));
    }
    return largest / kSteps;
  }

  template <int kColumns>
  struct Sums {
    __m512i a, b, c, d, e;
  };

  // Two inputs of a row by their weights. As text for the reason that `dot` of quantized_product.h has.
  template <int kColumns>
  static void dot(Sums<kColumns>& sum, const __m512i* weights, const int16_t* inputs) {
    __m512i all;
    __asm__(
        "vpbroadcastd %[inputs], %[all]\n\t"
        "vpdpwssd %[all], %[w0], %[s0]\n\t"
        "vpdpwssd %[all], %[w1], %[s1]\n\t"
        "vpdpwssd %[all], %[w2], %[s2]\n\t"
        "vpdpwssd %[all], %[w3], %[s3]"
        : [s0] "+v"(sum.a), [s1] "+v"(sum.b), [s2] "+v"(sum.c), [s3] "+v"(sum.d), [all] "=&v"(all)
        : [w0] "v"(weights[0]), [w1] "v"(weights[1]), [w2] "v"(weights[2]), [w3] "v"(weights[3]),
          [inputs] "m"(*reinterpret_cast<const char(*)[4]>(inputs)));
    if (kColumns == 5) sum.e = _mm512_dpwssd_epi32(sum.e, weights[4], all);
  }

  // int32 [5, 16 C]: products of a tile's rows with 2 * `steps` rows of weights.
  template <int kColumns, size_t... kRow>
  __attribute__((noinline)) static void multiply(std::index_sequence<kRow...>, const int16_t* x, int64_t stride,
                                                 const void* weights, int64_t steps, int32_t* out) {
    Sums<kColumns> sum[kTile] = {};
    const auto* w = static_cast<const int32_t*>(weights);
    for (const int16_t* end = x + 2 * steps; x < end; x += 2, w += kColumns * kLanes) {
      __m512i some[kColumns];
      for (int c = 0; c < kColumns; ++c) some[c] = _mm512_loadu_si512(w + c * kLanes);
      (dot(sum[kRow], some, x + kRow * stride), ...);
    }
    const auto store = [&](const Sums<kColumns>& s, int32_t* to) {
      _mm512_store_si512(to, s.a), _mm512_store_si512(to + 16, s.b);
      _mm512_store_si512(to + 32, s.c), _mm512_store_si512(to + 48, s.d);
      if (kColumns == 5) _mm512_store_si512(to + 64, s.e);
    };
    (store(sum[kRow], out + kRow * kColumns * kLanes), ...);
  }

  // `count` queries, at most 5, of rows `stride` apart, to rows `out_stride` apart.
  template <int kColumns>
  static void attend(Scratch& s, const float* q, int64_t stride, int64_t count, float* out, int64_t out_stride) {
    constexpr auto kRows = std::make_index_sequence<kTile>{};
    alignas(64) int16_t rows[kTile * (kMostDim + kLanes)] = {};
    alignas(64) int32_t sums[kTile * kMostDim];
    constexpr int64_t row_stride = kMostDim + kLanes;
    float factors[kTile];
    for (int64_t t = 0; t < count; ++t)
      factors[t] = round_row(q + t * stride, s.dim, rows + t * row_stride) / std::sqrt(static_cast<float>(s.dim));
    const int64_t length = s.panels * kKeys;
    for (int64_t p = 0; p < s.panels; ++p) {
      multiply<4>(kRows, rows, row_stride, s.keys.data() + p * kKeys * s.dim, s.dim / 2, sums);
      __m512 most[kTile];
      std::fill_n(most, count, _mm512_set1_ps(-INFINITY));
      for (int64_t j = 0; j < kKeys; j += kLanes) {
        const int64_t key = p * kKeys + j;
        const __m512 scale = _mm512_loadu_ps(s.key_scales.data() + key);
        const __mmask16 known = lanes(s.tokens - key);
        for (int64_t t = 0; t < count; ++t) {
          const __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums + t * kKeys + j)), scale);
          _mm512_storeu_ps(s.scores.data() + t * length + key, score);
          most[t] = _mm512_mask_max_ps(most[t], known, most[t], score);
        }
      }
      for (int64_t t = 0; t < count; ++t) s.peaks[t * s.panels + p] = _mm512_reduce_max_ps(most[t]);
    }
    float shares[kTile];
    for (int64_t t = 0; t < count; ++t) {
      float* peaks = s.peaks.data() + t * s.panels;
      const float largest = *std::max_element(peaks, peaks + s.panels);
      const __m512 factor = _mm512_set1_ps(factors[t]);
      float total = 0;
      for (int64_t p = 0; p < s.panels; ++p) {
        const __m512 peak = _mm512_set1_ps(peaks[p]);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t j = p * kKeys; j < (p + 1) * kKeys; j += kLanes) {
          const __m512 score = _mm512_sub_ps(_mm512_loadu_ps(s.scores.data() + t * length + j), peak);
          const __m512 part = _mm512_mul_ps(exponential(_mm512_mul_ps(score, factor)), _mm512_set1_ps(kParts));
          const __m512i rounded = _mm512_maskz_cvtps_epi32(lanes(s.tokens - j), part);
          sum = _mm512_add_epi32(sum, rounded);
          auto* to = reinterpret_cast<__m256i*>(s.parts.data() + t * length + j);
          _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(rounded));
        }
        peaks[p] = std::exp((peaks[p] - largest) * factors[t]);
        total += peaks[p] * _mm512_reduce_add_epi32(sum);
      }
      shares[t] = 1.0f / total;
    }
    alignas(64) float totals[kTile * kColumns * kLanes] = {};
    for (int64_t p = 0; p < s.panels; ++p) {
      const int32_t* values = s.values.data() + p * kKeys / 2 * kColumns * kLanes;
      multiply<kColumns>(kRows, s.parts.data() + p * kKeys, length, values, kKeys / 2, sums);
      for (int64_t t = 0; t < count; ++t) {
        const __m512 weight = _mm512_set1_ps(s.peaks[t * s.panels + p]);
        for (int64_t i = t * kColumns * kLanes; i < (t + 1) * kColumns * kLanes; i += kLanes) {
          const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i));
          _mm512_store_ps(totals + i, _mm512_fmadd_ps(sum, weight, _mm512_load_ps(totals + i)));
        }
      }
    }
    for (int64_t t = 0; t < count; ++t)
      for (int64_t c = 0; c < kColumns; ++c) {
        const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(s.value_scales + c * kLanes), _mm512_set1_ps(shares[t]));
        const __m512 value = _mm512_mul_ps(_mm512_load_ps(totals + (t * kColumns + c) * kLanes), scale);
        _mm512_mask_storeu_ps(out + t * out_stride + c * kLanes, lanes(s.dim - c * kLanes), value);
      }
  }

  int64_t heads_ = 0;
};

}  // namespace pocketvlm
