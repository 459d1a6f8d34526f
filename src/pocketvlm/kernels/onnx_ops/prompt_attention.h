// Attention of many new tokens, as prompts have: in 16 bits, block of keys by block, each packed once for many rows. A block
// has 128 keys, whose products are those of prompt_vectors.h, or 512 where there are tile registers (prompt_tiles.h).
//
// Queries, keys and values are mixed by Hadamard's matrix over every sixteenth channel first, so that none is far larger
// than the others: products of queries with keys stay what they were, and the sum of values is mixed back at the end.
// Each query and key is rounded to kSteps of its own largest value, each value to 1,023 of its own, the exponentials
// (times the size of their value) to 16,383 of the largest of a block. Sums run over blocks, scaled to the largest
// so far (online softmax; Milakov and Gimelshein 2018, arXiv 1805.02867). Nothing depends on tokens that a row does not
// see. What is no number in a row, or in a key or value that it sees, makes its output none.
//
// Rows that see more than kFar keys have queries and keys in 8 bits (as SageAttention has; Zhang et al. 2024, arXiv
// 2410.02367), where the processor multiplies these twice as fast: what a score loses is a hundredth of the scores' spread.
//
// Shapes:  R rows of a task · E head dim · N = E / 16 registers of a row
#pragma once

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "attention_rows.h"
#include "prompt_vectors.h"
#if POCKETVLM_TILES
#include "prompt_tiles.h"
#endif

namespace pocketvlm {

// Rows that share keys as they were packed, where `total` rows are to be had for `threads`: a task for each of two turns,
// and not more than stay in the second-level cache (a megabyte; two where there are tiles) with what belongs to them.
// Results do not depend on it.
inline int64_t task_rows(int64_t total, int64_t threads) {
  constexpr int64_t kTall = 48, kLeast = 144, kMost = 528;  // whole blocks of 6 rows and of 16
  const int64_t rows = std::clamp(total / (2 * std::max<int64_t>(threads, 1)), kLeast, kMost);
  return (rows + kTall - 1) / kTall * kTall;
}

// Keys that a row sees in 16 bits; 8,192 tokens are some twenty pages, and most prompts are shorter.
constexpr bool kHasFastBytes = sizeof(Stored) == 1;
constexpr int64_t kFar = kHasFastBytes ? 8192 : int64_t{1} << 40;

template <typename Products>
class PromptAttention {
 public:
  // Rows `begin` to `end`; false where memory does not suffice.
  static bool run(const Queries& q, int64_t begin, int64_t end) {
    static thread_local PromptAttention scratch;
    return scratch.grow(end - begin) && (scratch.attend(q, begin, end), true);
  }

 private:
  static constexpr int kDim = Products::kWidth, kTall = Products::kTall, kKeys = Products::kKeys, kCount = kDim / kLanes;
  // As many as let kDim products of two fit into 32 bits.
  static constexpr float kSteps = Products::kHasBytes ? 127 : kDim == 64 ? 5792 : kDim == 128 ? 4095 : 2896;
  static constexpr float kParts = 16383, kValueSteps = 1023;  // 128 products of these do, too
  // Of a logarithm: kKeys values of this size add 6e-8 of the largest, and are left out.
  static constexpr float kUnfelt = kKeys == 128 ? -21.5f : -22.9f;

  Products products;
  std::vector<float> factors, sums;  // of scores [R]; of values [R, E]
  std::vector<float> peaks, totals;  // the largest score so far [R]; sums of exponentials by it [R, 16]
  alignas(64) float key_scales[kKeys], value_logs[kKeys], value_inverses[kKeys];

  bool grow(int64_t rows) try {
    if (!products.grow(rows)) return false;
    factors.resize(rows), peaks.assign(rows, -INFINITY), totals.assign(rows * kLanes, 0.0f);
    sums.assign(rows * kDim, 0.0f);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }

  void attend(const Queries& q, int64_t begin, int64_t end) {
    const float size = 1.0f / std::sqrt(static_cast<float>(kDim));
    for (int64_t row = begin; row < end; ++row) {
      Ints steps[kCount];
      factors[row - begin] = size * round_row(q.from + q.place(row), steps);
      products.put_query(row - begin, steps);
    }
    products.begin();
    const int64_t last = q.visible(end - 1);
    for (int64_t key = 0; key < last; key += kKeys) {
      pack(q.keys + key * kDim, q.values + key * kDim, std::min<int64_t>(kKeys, last - key));
      for (int64_t row = begin; row < end; row += kTall) {
        const int64_t count = std::min<int64_t>(kTall, end - row);
        int64_t visible[kTall];
        for (int64_t t = 0; t < count; ++t) visible[t] = q.visible(row + t) - key;
        if (visible[0] >= kKeys)
          attend_packed<true>(row - begin, count, visible);
        else if (visible[count - 1] > 0)
          attend_packed<false>(row - begin, count, visible);
      }
    }
    products.end();
    for (int64_t row = begin; row < end; ++row) finish(row - begin, q.to + q.place(row));
  }

  // Hadamard's matrix over the registers of a row, each of size N^-0.5; its own inverse.
  static void mix(Floats* x) {
#pragma GCC unroll 4
    for (int half = 1; half < kCount; half *= 2)
#pragma GCC unroll 8
      for (int pair = 0; pair < kCount / 2; ++pair) {
        const int low = pair / half * 2 * half + pair % half, high = low + half;
        const Floats sum = add(x[low], x[high]);
        x[high] = subtract(x[low], x[high]), x[low] = sum;
      }
    const Floats size = all(1.0f / std::sqrt(static_cast<float>(kCount)));
    for (int i = 0; i < kCount; ++i) x[i] = multiply(x[i], size);
  }

  // `x` [E] mixed, to registers; returns its largest size, or NaN where not all of it is finite.
  static float mix_row(const float* x, Floats* mixed) {
    for (int i = 0; i < kCount; ++i) mixed[i] = load(x + i * kLanes);
    mix(mixed);
    Floats largest = all(1e-20f), finite = all(0.0f);
    for (int i = 0; i < kCount; ++i) {
      largest = larger(largest, absolute(mixed[i]));
      finite = multiply_add(mixed[i], all(0.0f), finite);
    }
    return largest_of(largest) + sum_of(finite);
  }

  // `x` [E], mixed and rounded; returns what a step is, or NaN.
  static float round_row(const float* x, Ints* steps) {
    Floats mixed[kCount];
    const float largest = mix_row(x, mixed);
    const Floats factor = all(kSteps / largest);
    for (int i = 0; i < kCount; ++i) steps[i] = to_ints(multiply(mixed[i], factor));
    return largest / kSteps;
  }

  // `count` keys and values, at most a block, of rows [., E].
  void pack(const float* k, const float* v, int64_t count) {
    if (count < kKeys) {
      products.clear_keys();
      for (float* some : {key_scales, value_logs, value_inverses}) std::fill_n(some, kKeys, 0.0f);
    }
    for (int64_t j = 0; j < count; ++j) {
      Ints steps[kCount];
      key_scales[j] = round_row(k + j * kDim, steps);
      if (key_scales[j] != key_scales[j]) std::fill_n(steps, kCount, all(0));
      products.put_key(j, steps);
    }
    for (int64_t j = 0; j < count; j += 2) {
      Floats mixed[2][kCount], factor[2] = {all(0.0f), all(0.0f)};
      for (int i = 0; i < 2; ++i) {
        // A last one without a neighbour stands beside itself by zero.
        const float largest = mix_row(v + std::min(j + i, count - 1) * kDim, mixed[i]);
        if (j + i == count) continue;
        factor[i] = all(kValueSteps / largest);
        const bool is_none = largest != largest || key_scales[j + i] != key_scales[j + i];
        value_logs[j + i] = is_none ? 0.0f : std::log(largest / kValueSteps);
        value_inverses[j + i] = is_none ? NAN : kValueSteps / largest;  // which reaches the sums of rows that see it
        if (is_none) factor[i] = all(0.0f), key_scales[j + i] = 0.0f;
      }
      for (int i = 0; i < kCount; ++i)
        products.put_values(j, i, to_ints(multiply(mixed[0][i], factor[0])), to_ints(multiply(mixed[1][i], factor[1])));
    }
  }

  // Rows `first` to `first + count`, a block at most, over the packed keys, of which each of them sees `visible`, or all.
  template <bool kAll>
  void attend_packed(int64_t first, int64_t count, const int64_t* visible) {
    alignas(64) float distances[kLanes] = {}, weights[kLanes];
    // A small block is always multiplied as a whole.
    const int64_t seen = kAll || kKeys == 128 ? kKeys : std::min<int64_t>(kKeys, visible[count - 1]);
    const int registers = static_cast<int>((seen + kLanes - 1) / kLanes);
    products.multiply_keys(first, seen);
    Floats found[kTall];
    float nearest_peak = -INFINITY;
    for (int64_t t = 0; t < count; ++t) {
      Floats scores[kKeys / kLanes], most = all(-INFINITY);
      const Floats factor = all(factors[first + t]);
      for (int j = 0; j < registers; ++j) {
        const Floats scale = multiply(load(key_scales + j * kLanes), factor);
        scores[j] = multiply_add(to_floats(products.score(t, j)), scale, load(value_logs + j * kLanes));
        if (!kAll) scores[j] = choose(first_lanes(visible[t] - j * kLanes), all(-INFINITY), scores[j]);
        most = larger(most, scores[j]);
      }
      const float peak = largest_of(most);
      const Floats top = all(kAll || visible[t] > 0 ? peak : 0.0f);
      found[t] = all(0.0f);
      for (int j = 0; j < registers; ++j) {
        Floats part = exponential(subtract(scores[j], top));
        if (!kAll) part = choose(first_lanes(visible[t] - j * kLanes), all(0.0f), part);
        Floats share = multiply(part, load(value_inverses + j * kLanes));
        if (!kAll) share = choose(first_lanes(visible[t] - j * kLanes), all(0.0f), share);
        found[t] = add(found[t], share);
        products.put_parts(t, j, to_ints(multiply(part, all(kParts))));
      }
      for (int j = registers; j < kKeys / kLanes && j % 4; ++j) products.put_parts(t, j, all(0));
      if (peak > peaks[first + t]) raise(first + t, peak);
      distances[t] = kAll || visible[t] > 0 ? peak - peaks[first + t] : -INFINITY;
      nearest_peak = std::max(nearest_peak, distances[t]);
    }
    store(weights, exponential(load(distances)));
    for (int64_t t = 0; t < count; ++t) {
      float* total = totals.data() + (first + t) * kLanes;
      store(total, multiply_add(found[t], all(weights[t]), load(total)));
    }
    if (nearest_peak <= kUnfelt) return;
    for (int64_t e = 0; e < kDim; e += Products::kChannels) {
      products.multiply_values(e, seen);
      for (int64_t t = 0; t < count; ++t) {
        float* to = sums.data() + (first + t) * kDim + e;
        const Floats weight = all(distances[t] > kUnfelt ? weights[t] / kParts : 0.0f);  // whatever the others feel
        for (int c = 0; c < Products::kChannels; c += kLanes)
          store(to + c, multiply_add(products.value(t, c), weight, load(to + c)));
      }
    }
  }

  // What a row has so far is counted by a new peak.
  void raise(int64_t row, float peak) {
    const float scale = std::exp(peaks[row] - peak);
    float* mine = sums.data() + row * kDim;
    for (int e = 0; e < kDim; e += kLanes) store(mine + e, multiply(load(mine + e), all(scale)));
    float* total = totals.data() + row * kLanes;
    store(total, multiply(load(total), all(scale)));
    peaks[row] = peak;
  }

  // A row's values, mixed back, to `out` [E].
  void finish(int64_t row, float* out) const {
    const Floats share = all(1.0f / sum_of(load(totals.data() + row * kLanes)) + 0.0f * factors[row]);
    Floats mine[kCount];
    for (int i = 0; i < kCount; ++i) mine[i] = multiply(load(sums.data() + row * kDim + i * kLanes), share);
    mix(mine);
    for (int i = 0; i < kCount; ++i) store(out + i * kLanes, mine[i]);
  }
};

template <template <int, bool> class Products, int kDim>
bool attend_by(const Queries& q, int64_t begin, int64_t end) {
  const int64_t far = std::clamp((kFar - q.before) * q.shared, begin, end);  // the first row that sees more
  return (begin == far || PromptAttention<Products<kDim, false>>::run(q, begin, far)) &&
         (far == end || PromptAttention<Products<kDim, kHasFastBytes>>::run(q, far, end));
}

// Rows `begin` to `end` by `PromptAttention`; false where memory does not suffice. A row alone decides on its bits, so that
// it does not depend on the rows beside it.
template <int kDim>
bool attend_heads(const Queries& q, int64_t begin, int64_t end) {
#if POCKETVLM_TILES
  if (tiles::granted()) return attend_by<TileProducts, kDim>(q, begin, end);
#endif
  return attend_by<VectorProducts, kDim>(q, begin, end);
}

// The same of heads of 64, 128 or 256.
inline bool attend_prompt(const Queries& q, int64_t begin, int64_t end) {
  auto* run = q.dim == 64 ? attend_heads<64> : q.dim == 128 ? attend_heads<128> : attend_heads<256>;
  return run(q, begin, end);
}

}  // namespace pocketvlm
