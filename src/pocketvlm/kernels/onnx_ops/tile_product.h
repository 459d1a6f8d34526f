// Products of int8 activations with weights of 8 bits on tile registers, where there are rows enough to fill them.
//
// Panels serve as they lie in memory: 16 outputs of 16 steps of four inputs are a tile. Sums are the same integers as
// those of quantized_product.h, so results are equal to the bit.
#pragma once

#include "quantized_product.h"
#include "tiles.h"

namespace pocketvlm {

static_assert(sizeof(Stored) == 1 && !kHasSignedWeights, "tiles read inputs and weights as AVX-512 does");

constexpr int64_t kTileLeast = 12;  // rows: fewer are sooner done without tiles
constexpr int64_t kTileInputs = tiles::kBytes;

// Rows of activations that may be read, of which the last ones are no one's: whole tiles.
inline int64_t tile_rows(int64_t rows) { return (rows + tiles::kRows - 1) / tiles::kRows * tiles::kRows; }

inline bool suits_tiles(const Size& size, int64_t bits, int64_t rows) {
  return bits == 8 && rows >= kTileLeast && size.block >= kTileInputs && tiles::granted();
}

// kTall times 16 rows by 32 outputs of a panel: int32 sums [., 64] += x [., inputs] times `w`.
template <int kTall>
void multiply_tiles(const int8_t* x, int64_t stride, const uint8_t* w, int64_t inputs, int32_t* sums) {
  constexpr int64_t kStep = 4 * kPanel, kSums = sizeof(int32_t) * kPanel, kNext = kSums * tiles::kRows / sizeof(int32_t);
  tiles::load<0>(sums, kSums), tiles::load<1>(sums + 16, kSums);
  if (kTall == 2) tiles::load<2>(sums + kNext, kSums), tiles::load<3>(sums + kNext + 16, kSums);
  for (const int8_t* end = x + inputs; x < end; x += kTileInputs, w += kTileInputs * kPanel) {
    tiles::load<4>(x, stride), tiles::load<6>(w, kStep), tiles::load<7>(w + 64, kStep);
    tiles::dot<0, 4, 6>(), tiles::dot<1, 4, 7>();
    if (kTall == 2) {
      tiles::load<5>(x + tiles::kRows * stride, stride);
      tiles::dot<2, 5, 6>(), tiles::dot<3, 5, 7>();
    }
  }
  tiles::store<0>(sums, kSums), tiles::store<1>(sums + 16, kSums);
  if (kTall == 2) tiles::store<2>(sums + kNext, kSums), tiles::store<3>(sums + kNext + 16, kSums);
}

// What is left of a block's inputs behind its last whole tile, less than 64.
inline void multiply_rest(const int8_t* x, int64_t stride, const uint8_t* w, int64_t inputs, int64_t rows, int32_t* sums) {
  const Segment segment{w, w, inputs, 0};
  for (; rows >= kRows; rows -= kRows, x += kRows * stride, sums += kRows * kPanel)
    multiply_rows<8, kRows>(x, stride, segment, sums);
  for (; rows > 0; --rows, x += stride, sums += kPanel) multiply_rows<8, 1>(x, stride, segment, sums);
}

// All rows by one panel, as `panel<8>`.
inline void tile_panel(const Size& size, const Activations& all, const Weights& weights, const Finish& finish, float* out,
                       int64_t rows, int64_t number) {
  constexpr int64_t kGroupRows = 2 * tiles::kRows;
  const int64_t blocks = size.blocks(), whole = size.block / kTileInputs * kTileInputs;
  const Weights w{weights.values + number * size.inputs * kPanel, weights.scales + number * blocks * kPanel};
  const Finish after{finish.bias ? finish.bias + number * kPanel : nullptr, finish.has_gelu};
  const int64_t columns = std::min<int64_t>(kPanel, size.outputs - number * kPanel);
  alignas(64) int32_t sums[kGroupRows * kPanel];
  alignas(64) float totals[kGroupRows * kPanel];
  tiles::begin();
  for (int64_t first = 0; first < rows; first += kGroupRows) {
    const int64_t mine = std::min(kGroupRows, rows - first), read = tile_rows(mine);
    const Activations x{all.values + first * size.inputs, all.scales + first * blocks, all.starts + first * blocks};
    std::fill_n(totals, mine * kPanel, 0.0f);
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t t = 0; t < read; ++t) std::fill_n(sums + t * kPanel, kPanel, t < mine ? x.starts[t * blocks + b] : 0);
      const int8_t* from = x.values + b * size.block;
      const uint8_t* values = w.values + b * size.block * kPanel;
      for (int64_t half = 0; half < 2; ++half) {
        const auto multiply = read > tiles::kRows ? multiply_tiles<2> : multiply_tiles<1>;
        multiply(from, size.inputs, values + 128 * half, whole, sums + 32 * half);
      }
      if (whole < size.block)
        multiply_rest(from + whole, size.inputs, values + whole * kPanel, size.block - whole, mine, sums);
      add_block(x, blocks, b, w.scales + b * kPanel, mine, sums, totals);
    }
    write_rows(size, after, totals, mine, out + first * size.outputs + number * kPanel, columns);
  }
  tiles::end();
}

}  // namespace pocketvlm
