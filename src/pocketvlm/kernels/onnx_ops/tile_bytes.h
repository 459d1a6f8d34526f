// Integers of 16 bits on tile registers: each is 128 upper + lower, two bytes with sign, so that a product of two is the
// sum of three integers times 16384, 128 and 1.
#pragma once

#include <cstdint>

#include "tiles.h"
#include "vectors.h"

namespace pocketvlm {

constexpr int64_t kSquare = tiles::kRows * tiles::kRows;  // sums of a tile

// Upper and lower bytes of sixteen integers, in 32 bits each.
inline void split(Ints value, Ints* upper, Ints* lower) {
  *upper = _mm512_srai_epi32(add(value, all(64)), 7);
  *lower = _mm512_sub_epi32(value, _mm512_slli_epi32(*upper, 7));
}

inline void store_bytes(int8_t* to, Ints a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a));
}

// Those of the first `known` of `count` integers, a multiple of sixteen; of the others zero.
inline void split_row(const int16_t* row, int64_t known, int64_t count, int8_t* upper, int8_t* lower) {
  for (int64_t e = 0; e < count; e += kLanes) {
    const auto some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + e));
    Ints high, low;
    split(_mm512_maskz_cvtepi16_epi32(first_lanes(known - e), some), &high, &low);
    store_bytes(upper + e, high), store_bytes(lower + e, low);
  }
}

// Tiles 0, 1 and 2 to three squares [16, 16].
inline void store_squares(int32_t* squares) {
  constexpr int64_t kRow = sizeof(int32_t) * tiles::kRows;
  tiles::store<0>(squares, kRow), tiles::store<1>(squares + kSquare, kRow), tiles::store<2>(squares + 2 * kSquare, kRow);
}

// 16384 upper + 128 middle + lower of row `i` of three squares.
inline Ints joined(const int32_t* squares, int64_t i) {
  const Ints high = _mm512_slli_epi32(load(squares + i * tiles::kRows), 14);
  const Ints middle = _mm512_slli_epi32(load(squares + kSquare + i * tiles::kRows), 7);
  return add(add(high, middle), load(squares + 2 * kSquare + i * tiles::kRows));
}

}  // namespace pocketvlm
