// Softmax attention inside a view on tile registers: the integers of view_attention.h, each as an upper and a lower
// byte, so that the results are equal to the bit.
//
// Queries, keys and values are split as tile_bytes.h says; a part of a softmax is 128 upper + lower as well, both without
// sign. Lanes are queries everywhere: nothing has to be summed across a register, and four keys' parts in a lane are what a
// tile wants of its right side.
//
// Shapes:  N tokens · E head dim · P panels of 64 keys · C tiles of 16 channels · Q = 16 queries at once
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "buffer.h"
#include "tile_bytes.h"
#include "view_rounding.h"

namespace pocketvlm {

class TiledView {
 public:
  static constexpr int64_t kQueries = tiles::kRows;

  // Few tokens are sooner done without tiles.
  static bool suits(int64_t tokens) { return tokens >= 2 * kViewKeys && tiles::granted(); }

  // Room for so many tokens. What nothing is written to is multiplied by zero, or is no key.
  bool grow(int64_t count, int64_t head) {
    tokens_ = count, dim_ = head, panels_ = (count + kViewKeys - 1) / kViewKeys;
    return keys_.grow(panels_ * kViewKeys / tiles::kRows * kKeyTiles * kTile) &&
           values_.grow(panels_ * columns() * 2 * kTile) && parts_.grow(panels_ * 2 * kTile) &&
           key_scales_.grow(panels_ * kViewKeys) && peaks_.grow(panels_ * kLanes) && totals_.grow(panels_ * kLanes);
  }

  // Keys and values [N, E] with rows `stride` apart.
  void pack(const float* k, const float* v, int64_t stride) {
    alignas(64) int16_t row[kMostDim + kLanes];
    nothing_ = 0.0f;
    for (int64_t j = 0; j < tokens_; ++j) {
      ask_for(k + std::min(j + kAhead, tokens_ - 1) * stride, dim_), ask_for(v + j * stride, dim_);
      key_scales_[j] = round_row(k + j * stride, dim_, row);
      nothing_ += key_scales_[j] * 0.0f;
      int8_t* to = keys_.data() + j / tiles::kRows * kKeyTiles * kTile + j % tiles::kRows * tiles::kBytes;
      alignas(64) int8_t high[kMostDim], low[kMostDim];
      split_row(row, dim_, kMostDim, high, low);
      std::memcpy(to, high, kWhole), std::memcpy(to + kTile, low, kWhole);
      std::memcpy(to + 2 * kTile, high + kWhole, kRest), std::memcpy(to + 2 * kTile + kRest, low + kWhole, kRest);
    }
    for (int64_t c = 0; c < columns(); ++c) {
      const ValueColumn column(v + c * kLanes, stride, tokens_, first_lanes(dim_ - c * kLanes));
      store(value_scales_ + c * kLanes, column.scales);
      for (int64_t p = 0; p < panels_; ++p) pack_values(column, p, c);
    }
  }

  // `count` queries, at most 16, of rows `stride` apart, to rows `out_stride` apart.
  void attend(const float* q, int64_t stride, int64_t count, float* out, int64_t out_stride) {
    alignas(64) int8_t queries[kQueryTiles * kTile] = {};
    alignas(64) float factors[kQueries] = {};
    for (int64_t t = 0; t < count; ++t) {
      alignas(64) int16_t row[kMostDim + kLanes];
      ask_for<true>(out + t * out_stride, dim_);
      factors[t] = nothing_ + round_row(q + t * stride, dim_, row) / std::sqrt(1.0f * dim_);
      place_query(row, t, queries);
    }
    const Floats factor = load(factors);
    tiles::begin();
    const Floats largest = score(queries, factor);
    Floats total = multiply(factor, all(0.0f));  // NaN where something is not finite: exponentials forget it
    for (int64_t p = 0; p < panels_; ++p) {
      const Floats weight = exponential(multiply(subtract(load(peaks_.data() + p * kLanes), largest), factor));
      store(peaks_.data() + p * kLanes, weight);
      total = multiply_add(weight, load(totals_.data() + p * kLanes), total);
    }
    alignas(64) float sums[kMostDim * kQueries] = {};
    weigh(sums);
    tiles::end();
    const Floats share = divide(all(1.0f), total);
    const Ints places = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           all(static_cast<int32_t>(out_stride)));
    for (int64_t e = 0; e < dim_; ++e) {
      const Floats value = multiply(load(sums + e * kQueries), multiply(all(value_scales_[e]), share));
      _mm512_mask_i32scatter_ps(out + e, first_lanes(count), places, value, sizeof(float));
    }
  }

 private:
  static constexpr int64_t kTile = tiles::kRows * tiles::kBytes;
  static constexpr int64_t kWhole = tiles::kBytes, kRest = 16;  // dims in tiles of their own; at most, of those behind
  static constexpr int64_t kKeyTiles = 3;    // of 16 keys: upper, lower; of what is behind the 64th dim both
  static constexpr int64_t kQueryTiles = 5;  // upper, lower; of what is behind: upper, lower and upper, lower
  static constexpr int64_t kSides = kViewKeys / tiles::kRows;  // of a panel

  int64_t columns() const { return (dim_ + kLanes - 1) / kLanes; }

  // Rows of channels, bytes of 64 keys: upper and lower.
  void pack_values(const ValueColumn& column, int64_t p, int64_t c) {
    alignas(64) int32_t rounded[kViewKeys * kLanes];
    for (int64_t j = 0; j < kViewKeys; ++j) store(rounded + j * kLanes, column.rounded(p * kViewKeys + j));
    int8_t* to = values_.data() + (p * columns() + c) * 2 * kTile;
    const Ints rows = _mm512_slli_epi32(_mm512_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15), 4);
    for (int64_t channel = 0; channel < kLanes; ++channel, to += tiles::kBytes)
      for (int64_t j = 0; j < kViewKeys; j += kLanes) {
        const Ints value = _mm512_i32gather_epi32(rows, rounded + j * kLanes + channel, 4);
        Ints high, low;
        split(value, &high, &low);
        store_bytes(to + j, high), store_bytes(to + kTile + j, low);
      }
  }

  // Where the right side of a product wants the dims of query `t`: [E / 4, 16, 4].
  void place_query(const int16_t* row, int64_t t, int8_t* to) const {
    alignas(64) int8_t high[kMostDim], low[kMostDim];
    split_row(row, dim_, kMostDim, high, low);
    const auto place = [&](int64_t tile, int64_t first, const int8_t* from, int64_t count) {
      int8_t* at = to + tile * kTile + first / 4 * tiles::kBytes + t * 4;
      for (int64_t e = 0; e < count; e += 4) std::memcpy(at + e / 4 * tiles::kBytes, from + e, 4);
    };
    place(0, 0, high, kWhole), place(1, 0, low, kWhole);
    place(2, 0, high + kWhole, kRest);
    place(3, 0, low + kWhole, kRest), place(3, kRest, high + kWhole, kRest);
    place(4, kRest, low + kWhole, kRest);
  }

  // 16 keys by the queries, a quarter of it: after all four, three squares are in tiles.
  void multiply_keys(const int8_t* queries, int64_t number, int64_t quarter) const {
    constexpr int64_t kRow = tiles::kBytes;
    const int8_t* keys = keys_.data() + number * kKeyTiles * kTile;
    const bool has_rest = dim_ > kWhole;
    if (quarter == 0) {
      tiles::clear<0>(), tiles::clear<1>(), tiles::clear<2>();
      tiles::load<6>(keys, kRow);
      tiles::dot_signed<0, 6, 4>(), tiles::dot_signed<1, 6, 5>();
    } else if (quarter == 1) {
      tiles::load<7>(keys + kTile, kRow);
      tiles::dot_signed<2, 7, 5>(), tiles::dot_signed<1, 7, 4>();
    } else if (quarter == 2 && has_rest) {
      tiles::load<6>(keys + 2 * kTile, kRow), tiles::load<3>(queries + 2 * kTile, kRow);
      tiles::dot_signed<0, 6, 3>();
    } else if (has_rest) {
      tiles::load<7>(queries + 3 * kTile, kRow), tiles::load<3>(queries + 4 * kTile, kRow);
      tiles::dot_signed<1, 6, 7>(), tiles::dot_signed<2, 6, 3>();
    }
  }

  // Parts of all panels, their sums and the largest score of each, and of all, which is returned. Products of the next
  // panel are in between the exponentials of one: the processor has few tiles to give other names, and waits for them.
  Floats score(const int8_t* queries, Floats factor) {
    alignas(64) int32_t squares[kSides * 3 * kSquare];
    alignas(64) float scores[kViewKeys * kQueries];
    tiles::load<4>(queries, tiles::kBytes), tiles::load<5>(queries + kTile, tiles::kBytes);
    for (int64_t i = 0; i < kSides; ++i) {
      for (int64_t quarter = 0; quarter < 4; ++quarter) multiply_keys(queries, i, quarter);
      store_squares(squares + i * 3 * kSquare);
    }
    Floats largest = all(-INFINITY);
    for (int64_t p = 0; p < panels_; ++p) {
      const Floats peak = read_scores(squares, p, scores);
      Ints total = all(0);
      uint8_t* parts = parts_.data() + p * 2 * kTile;
      const bool has_next = p + 1 < panels_;
      for (int64_t i = 0; i < kSides; ++i) {
        for (int64_t j = 0; j < 4; ++j, parts += tiles::kBytes) {
          if (has_next) multiply_keys(queries, (p + 1) * kSides + i, j);
          total = exponentials(scores + (4 * i + j) * 4 * kQueries, peak, factor, total, parts);
        }
        if (has_next) store_squares(squares + i * 3 * kSquare);
      }
      store(totals_.data() + p * kLanes, to_floats(total));
      store(peaks_.data() + p * kLanes, peak);
      largest = larger(largest, peak);
    }
    return largest;
  }

  // Squares of a panel to scores [64, 16], the largest of which are returned; what is no key has none.
  Floats read_scores(const int32_t* squares, int64_t p, float* scores) const {
    const int64_t known = std::min(kViewKeys, tokens_ - p * kViewKeys);
    Floats peaks[4];
    std::fill_n(peaks, 4, all(-INFINITY));
    for (int64_t j = 0; j < known; ++j) {
      const Ints sum = joined(squares + j / tiles::kRows * 3 * kSquare, j % tiles::kRows);
      const Floats score = multiply(to_floats(sum), all(key_scales_[p * kViewKeys + j]));
      store(scores + j * kQueries, score);
      peaks[j % 4] = larger(peaks[j % 4], score);
    }
    for (int64_t j = known; j < kViewKeys; ++j) store(scores + j * kQueries, all(-INFINITY));
    return larger(larger(peaks[0], peaks[1]), larger(peaks[2], peaks[3]));
  }

  // Scores [4, 16] of keys to parts, in the order 0, 2, 1, 3 in each lane; returns their sums and `total`.
  static Ints exponentials(const float* scores, Floats peak, Floats factor, Ints total, uint8_t* parts) {
    const Ints lower_bytes = all(0x007f007f), upper_bytes = all(static_cast<int32_t>(0xff00ff00));
    Ints part[4];
    for (int64_t i = 0; i < 4; ++i) {
      const Floats score = multiply(subtract(load(scores + i * kQueries), peak), factor);
      part[i] = to_ints(multiply(exponential(score), all(kParts)));
      total = add(total, part[i]);
    }
    const Ints left = _mm512_or_si512(part[0], _mm512_slli_epi32(part[1], 16));
    const Ints right = _mm512_or_si512(part[2], _mm512_slli_epi32(part[3], 16));
    const Ints high = _mm512_and_si512(_mm512_slli_epi16(right, 1), upper_bytes);
    const Ints low = _mm512_slli_epi16(_mm512_and_si512(right, lower_bytes), 8);
    _mm512_storeu_si512(parts, _mm512_or_si512(_mm512_srli_epi16(left, 7), high));
    _mm512_storeu_si512(parts + kTile, _mm512_or_si512(_mm512_and_si512(left, lower_bytes), low));
    return total;
  }

  // 16 channels of a panel's values by its parts: three squares, in tiles yet.
  void multiply_values(int64_t number) const {
    const int8_t* values = values_.data() + number * 2 * kTile;
    tiles::clear<0>(), tiles::clear<1>(), tiles::clear<2>();
    tiles::load<6>(values, tiles::kBytes), tiles::load<7>(values + kTile, tiles::kBytes);
    tiles::dot<0, 6, 4>(), tiles::dot<1, 6, 5>();
    tiles::dot<2, 7, 5>(), tiles::dot<1, 7, 4>();
  }

  // sums [E, 16] += what the parts of all panels make of their values, by the weights of the panels; 16 channels are
  // multiplied while those before them are added.
  void weigh(float* sums) {
    alignas(64) int32_t squares[2][3 * kSquare];
    const int64_t width = columns();
    for (int64_t p = 0, n = 0; p < panels_; ++p) {
      const uint8_t* parts = parts_.data() + p * 2 * kTile;
      tiles::load<4>(parts, tiles::kBytes), tiles::load<5>(parts + kTile, tiles::kBytes);
      for (int64_t c = 0; c < width; ++c, ++n) {
        multiply_values(n);
        if (n) add_channels(squares[(n - 1) % 2], c ? p : p - 1, c ? c - 1 : width - 1, sums);
        store_squares(squares[n % 2]);
      }
    }
    add_channels(squares[(panels_ * width - 1) % 2], panels_ - 1, width - 1, sums);
  }

  void add_channels(const int32_t* squares, int64_t p, int64_t c, float* sums) const {
    const Floats weight = load(peaks_.data() + p * kLanes);
    float* at = sums + c * kSquare;
    for (int64_t i = 0; i < std::min<int64_t>(tiles::kRows, dim_ - c * kLanes); ++i, at += kQueries)
      store(at, multiply_add(to_floats(joined(squares, i)), weight, load(at)));
  }

  int64_t tokens_ = 0, dim_ = 0, panels_ = 0;
  Buffer<int8_t> keys_;    // [N / 16, 3, 16, 64]
  Buffer<int8_t> values_;  // [P, C, 2, 16, 64]
  Buffer<uint8_t> parts_;  // [P, 2, 16, 16, 4]
  Buffer<float> key_scales_, peaks_, totals_;  // [P * 64]; [P, 16], then the panels' weights; [P, 16]
  alignas(64) float value_scales_[kMostDim];
  float nothing_ = 0.0f;
};

}  // namespace pocketvlm
