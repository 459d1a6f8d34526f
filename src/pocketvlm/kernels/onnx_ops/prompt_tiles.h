// Products of a prompt's attention on tile registers, 512 keys at once: what is stored of tiles waits for all before it, so
// that few stores matter more than few keys.
//
// Those of 16 bits are split as tile_bytes.h says; a part of a softmax is 128 upper + lower as well, both without sign. With
// few keys at once the integers would be those of prompt_vectors.h; as it is, exponentials are rounded to 16,383 of the
// largest of more keys, and the results differ by that.
//
// Shapes:  R rows of a task · E head dim · 512 keys at once, in 32 columns of 16, or 8 depths of 64 · K = E / 64
#pragma once

#include <cstring>

#include "buffer.h"
#include "tile_bytes.h"

namespace pocketvlm {

template <int kDim, bool kIsFar>
class TileProducts {
 public:
  static constexpr int kWidth = kDim, kTall = tiles::kRows, kKeys = 512, kChannels = kLanes;
  static constexpr bool kHasBytes = kIsFar;

  // What no query is written to is multiplied, and read by nobody.
  bool grow(int64_t rows) {
    plane_ = (rows + kTall) * kDim;
    return queries_.grow(kPlanes * plane_) && keys_.grow(kPlanes * kKeyPlane) && values_.grow(2 * kKeyPlane);
  }

  void begin() { tiles::begin(); }
  void end() { tiles::end(); }

  void put_query(int64_t row, const Ints* steps) {
    for (int i = 0; i < kCount; ++i) put(queries_.data() + row * kDim + i * kLanes, plane_, steps[i]);
  }

  // What a block does not fill, whatever it holds, has parts of zero, and scores that no row sees.
  void clear_keys() {}

  void put_key(int64_t j, const Ints* steps) {
    alignas(64) int8_t row[kPlanes][kDim];
    for (int i = 0; i < kCount; ++i) put(row[0] + i * kLanes, kDim, steps[i]);
    for (int plane = 0; plane < kPlanes; ++plane) {
      int8_t* to = keys_.data() + plane * kKeyPlane + j / tiles::kRows * kDeep * kTile + j % tiles::kRows * 4;
      for (int e = 0; e < kDim; e += 4) std::memcpy(to + e / 4 * tiles::kBytes, row[plane] + e, 4);
    }
  }

  // A register of channels of two keys: half of what four keys have side by side.
  void put_values(int64_t j, int i, Ints first, Ints second) {
    Ints upper[2], lower[2];
    split(first, &upper[0], &lower[0]), split(second, &upper[1], &lower[1]);
    int8_t* to = values_.data() + i * kDepths * kTile + j / 4 * tiles::kBytes;
    put_pair(to, j % 4 == 2, upper), put_pair(to + kKeyPlane, j % 4 == 2, lower);
  }

  // Scores of the rows from `first` on with the first `seen` keys, and maybe some more.
  void multiply_keys(int64_t first, int64_t seen) {
    const int8_t* x = queries_.data() + first * kDim;
    const int columns = static_cast<int>((seen + tiles::kRows - 1) / tiles::kRows);
    if constexpr (kIsFar) {
      for (int c = 0; c < columns; c += 4) multiply_bytes(x, c);
    } else {
      for (int c = 0; c <= columns; ++c) {  // a column is joined while the next is multiplied
        if (c < columns) multiply_halves(x, c);
        if (c) join(c - 1);
      }
    }
  }

  Ints score(int64_t t, int j) const { return load(scores_ + j * kSquare + t * tiles::kRows); }

  void put_parts(int64_t t, int j, Ints parts) {
    int8_t* to = parts_[0] + j / 4 * kTile + t * tiles::kBytes + j % 4 * kLanes;
    store_bytes(to, _mm512_srli_epi32(parts, 7)), store_bytes(to + sizeof parts_[0], _mm512_and_si512(parts, all(127)));
  }

  // Sums of 16 channels from `e` on over the first `seen` keys by their parts.
  void multiply_values(int64_t e, int64_t seen) {
    const int8_t *part = parts_[0], *value = values_.data() + e / kLanes * kDepths * kTile;
    tiles::clear<0>(), tiles::clear<1>(), tiles::clear<2>(), tiles::clear<3>();
    for (int64_t key = 0; key < seen; key += tiles::kBytes, part += kTile, value += kTile) {
      tiles::load<4>(part, tiles::kBytes), tiles::load<6>(value, tiles::kBytes);
      tiles::dot_signed<0, 4, 6>();
      tiles::load<5>(part + sizeof parts_[0], tiles::kBytes), tiles::load<7>(value + kKeyPlane, tiles::kBytes);
      tiles::dot_signed<1, 5, 6>(), tiles::dot_signed<2, 4, 7>(), tiles::dot_signed<3, 5, 7>();
    }
    squares_ = room_ + e / kLanes % 2 * 4 * kSquare;
    store_four(squares_);
  }

  // What is 16,384 upper + 128 (two in the middle) + lower may need more than 32 bits: rounded once.
  Floats value(int64_t t, int) const {
    const int32_t* at = squares_ + t * tiles::kRows;
    const Ints middle = add(load(at + kSquare), load(at + 2 * kSquare));
    const Ints upper = add(load(at), _mm512_srai_epi32(middle, 7));
    const Ints lower = add(load(at + 3 * kSquare), _mm512_slli_epi32(_mm512_and_si512(middle, all(127)), 7));
    return multiply_add(to_floats(upper), all(16384.0f), to_floats(lower));
  }

 private:
  static constexpr int kCount = kDim / kLanes, kDepths = kKeys / tiles::kBytes, kDeep = kDim / tiles::kBytes;
  static constexpr int kPlanes = kIsFar ? 1 : 2, kTile = tiles::kRows * tiles::kBytes;
  static constexpr int64_t kKeyPlane = kKeys * kDim;

  static void put(int8_t* to, int64_t plane, Ints steps) {
    if constexpr (kIsFar) return store_bytes(to, steps);
    Ints upper, lower;
    split(steps, &upper, &lower);
    store_bytes(to, upper), store_bytes(to + plane, lower);
  }

  // Bytes of two keys, in the lower or the upper half of what four have in a lane.
  static void put_pair(int8_t* to, bool is_upper, const Ints* two) {
    const Ints byte = all(255), next = _mm512_slli_epi32(_mm512_and_si512(two[1], byte), 8);
    const Ints both = _mm512_or_si512(_mm512_and_si512(two[0], byte), next);
    auto* at = reinterpret_cast<int32_t*>(to);
    store(at, is_upper ? _mm512_or_si512(load(at), _mm512_slli_epi32(both, 16)) : both);
  }

  static void store_four(int32_t* to) {
    constexpr int kRow = sizeof(int32_t) * tiles::kRows;
    tiles::store<0>(to, kRow), tiles::store<1>(to + kSquare, kRow);
    tiles::store<2>(to + 2 * kSquare, kRow), tiles::store<3>(to + 3 * kSquare, kRow);
  }

  // Four columns of keys in 8 bits.
  void multiply_bytes(const int8_t* x, int c) {
    tiles::clear<0>(), tiles::clear<1>(), tiles::clear<2>(), tiles::clear<3>();
    const int8_t* w = keys_.data() + c * kDeep * kTile;
    for (int k = 0; k < kDeep; ++k, w += kTile) {
      tiles::load<4>(x + k * tiles::kBytes, kDim);
      tiles::load<5>(w, tiles::kBytes), tiles::dot_signed<0, 4, 5>();
      tiles::load<6>(w + kDeep * kTile, tiles::kBytes), tiles::dot_signed<1, 4, 6>();
      tiles::load<7>(w + 2 * kDeep * kTile, tiles::kBytes), tiles::dot_signed<2, 4, 7>();
      tiles::load<5>(w + 3 * kDeep * kTile, tiles::kBytes), tiles::dot_signed<3, 4, 5>();
    }
    store_four(scores_ + c * kSquare);
  }

  // A column of keys in 16 bits: upper, two in the middle, lower.
  void multiply_halves(const int8_t* x, int c) {
    tiles::clear<0>(), tiles::clear<1>(), tiles::clear<2>(), tiles::clear<3>();
    const int8_t* w = keys_.data() + c * kDeep * kTile;
    for (int k = 0; k < kDeep; ++k, w += kTile, x += tiles::kBytes) {
      tiles::load<4>(x, kDim), tiles::load<6>(w, tiles::kBytes), tiles::dot_signed<0, 4, 6>();
      tiles::load<5>(x + plane_, kDim), tiles::load<7>(w + kKeyPlane, tiles::kBytes);
      tiles::dot_signed<1, 5, 6>(), tiles::dot_signed<2, 4, 7>(), tiles::dot_signed<3, 5, 7>();
    }
    store_four(room_ + c % 2 * 4 * kSquare);
  }

  void join(int c) {
    const int32_t* from = room_ + c % 2 * 4 * kSquare;
    for (int i = 0; i < kSquare; i += kLanes) {
      const Ints middle = add(load(from + kSquare + i), load(from + 2 * kSquare + i));
      const Ints outer = add(_mm512_slli_epi32(load(from + i), 14), load(from + 3 * kSquare + i));
      store(scores_ + c * kSquare + i, add(outer, _mm512_slli_epi32(middle, 7)));
    }
  }

  Buffer<int8_t> queries_, keys_, values_;  // [planes, R, E]; [planes, 32, K, 16, 16, 4]; [2, E / 16, 8, 16, 16, 4]
  int64_t plane_ = 0;
  alignas(64) int8_t parts_[2][kTall * kKeys];           // [8, 16, 64]
  alignas(64) int32_t scores_[kKeys * kTall];            // [32, 16, 16]
  alignas(64) int32_t room_[2 * 4 * kSquare];            // four squares, and those before them
  int32_t* squares_ = room_;                             // of some channels
};

}  // namespace pocketvlm
