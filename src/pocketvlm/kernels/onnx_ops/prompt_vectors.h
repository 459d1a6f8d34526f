// Products of a prompt's attention on vectors, see prompt_attention.h: panels of 64 keys, or of 64 channels, by six rows.
//
// Shapes:  R rows of a task · E head dim · 128 keys at once
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <type_traits>
#include <vector>

#include "products.h"

namespace pocketvlm {

template <int kDim, bool kIsFar>
class VectorProducts {
 public:
  static constexpr int kWidth = kDim, kTall = 6, kKeys = 128, kChannels = kPanel;
  static constexpr bool kHasBytes = kIsFar;

  bool grow(int64_t rows) try {
    queries_.assign((rows + kTall) * kDim, 0), starts_.assign(rows + kTall, 0);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }

  void begin() {}
  void end() {}

  void put_query(int64_t row, const Ints* steps) {
    Step* to = queries_.data() + row * kDim;
    put(steps, to);
    if (kIsFar && !kHasSignedWeights) starts_[row] = -128 * std::accumulate(to, to + kDim, 0);
  }

  void clear_keys() { std::fill_n(keys_, kKeys * kDim, Step{0}), std::fill_n(values_, kDim * kKeys / 2, 0); }

  void put_key(int64_t j, const Ints* steps) {
    alignas(64) Step row[kDim];
    put(steps, row);
    Step* to = keys_ + j / kPanel * kPanel * kDim + j % kPanel * kTogether;
    for (int e = 0; e < kDim; e += kTogether) {
      uint32_t some;
      std::memcpy(&some, row + e, sizeof some);
      if (kIsFar) some ^= 0x80808080;  // bytes without sign, as products read weights
      std::memcpy(to + e * kPanel, &some, sizeof some);
    }
  }

  void put_values(int64_t j, int i, Ints first, Ints second) {
    const int64_t panel = i * kLanes / kPanel, column = i * kLanes % kPanel;
    store(values_ + (panel * kKeys + j) / 2 * kPanel + column, in_pairs(first, second));
  }

  // Scores of the rows from `first` on.
  void multiply_keys(int64_t first, int64_t) {
    const Step* x = queries_.data() + first * kDim;
    for (int p = 0; p < kKeys / kPanel; ++p) {
      const Step* w = keys_ + p * kPanel * kDim;
      if constexpr (kIsFar) {
        const Segment segment{reinterpret_cast<const uint8_t*>(w), nullptr, kDim, 0};
        for (int t = 0; t < kTall; ++t) std::fill_n(products_[p] + t * kPanel, kPanel, starts_[first + t]);
        constexpr int kHeight = kTall % kRows ? kTall / 2 : kRows;  // of a tile: 6 rows are one of 6, or two of 3
        for (int t = 0; t < kTall; t += kHeight)
          multiply_rows<8, kHeight>(x + t * kDim, kDim, segment, products_[p] + t * kPanel);
      } else {
        multiply_pairs<4, kTall>(x, kDim, reinterpret_cast<const int32_t*>(w), kDim / 2, products_[p]);
      }
    }
  }

  Ints score(int64_t t, int j) const {
    return load(products_[j * kLanes / kPanel] + t * kPanel + j * kLanes % kPanel);
  }

  void put_parts(int64_t t, int j, Ints parts) { store_halves(parts_ + t * kKeys + j * kLanes, parts); }

  // Sums of 64 channels from `e` on by the parts.
  void multiply_values(int64_t e, int64_t) {
    multiply_pairs<4, kTall>(parts_, kKeys, values_ + e * kKeys / 2, kKeys / 2, products_[0]);
  }

  Floats value(int64_t t, int c) const { return to_floats(load(products_[0] + t * kPanel + c)); }

 private:
  using Step = std::conditional_t<kIsFar, Stored, int16_t>;  // of queries, and of keys but for their zero
  static constexpr int kTogether = kIsFar ? 4 : 2;  // channels of a key that lie side by side

  static void put(const Ints* steps, Step* to) {
    for (int i = 0; i < kDim / kLanes; ++i) {
      if constexpr (kIsFar)
        store_inputs<8>(to + i * kLanes, steps[i]);
      else
        store_halves(to + i * kLanes, steps[i]);
    }
  }

  std::vector<Step> queries_;                     // [R, E]
  std::vector<int32_t> starts_;                   // of far rows' products, for the zero of keys [R]
  alignas(64) Step keys_[kKeys * kDim];           // [2, E / 2, 64, 2]; of far rows [2, E / 4, 64, 4], 128 above
  alignas(64) int32_t values_[kDim * kKeys / 2];  // [E / 64, 128 / 2, 64], two keys in each
  alignas(64) int16_t parts_[kTall * kKeys];
  alignas(64) int32_t products_[kKeys / kPanel][kTall * kPanel];
};

}  // namespace pocketvlm
