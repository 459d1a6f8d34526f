// Products of int8 activations with weights of 8 or 4 bits.
//
// Weights lie in the order in which they are read: panels of 64 outputs, in each panel four (8 bits) or eight (4 bits)
// inputs of all 64, then the next four or eight. A weight is stored without sign, 128 or 8 above its value; what that
// adds to a product is 128 or 8 times the sum of the activations, which the sum begins with (or nothing, where it is
// taken off when the weight is loaded).
//
// Shapes:  T rows (tokens) · K inputs · N outputs · B blocks of inputs that share a scale · P panels of 64 outputs
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "products.h"
#include "vector_math.h"

namespace pocketvlm {

constexpr int64_t kGroup = 24;  // most rows for which it matters that weights come from memory

// Activations of some rows in int8: values [T, K], scales [T, B], and minus the sums [T, B] times the weights' zero.
struct Activations {
  Stored* values;
  float* scales;
  int32_t* starts;
};

struct Weights {
  const uint8_t* values;  // [P, K / 4, 64, 4], or [P, K / 8, 64, 4] with inputs 0 to 3 in the lower half of a byte
  const float* scales;    // [P, B, 64]
};

// What becomes of a sum: a bias [N] is added (null for none), then the tanh form of GELU.
struct Finish {
  const float* bias;
  bool has_gelu;
};

struct Size {
  int64_t inputs, outputs, block;
  int64_t blocks() const { return inputs / block; }
};

// One row: each block by its largest value, symmetric, to the nearest of 255 steps, the sixteen from `k` on to `place(k)`.
// Where a value is not finite no scale is either: a largest value alone would forget a NaN that another value follows.
template <int kBits, typename Place>
void quantize_row(const float* x, const Size& size, const Place& place, float* scales, int32_t* starts) {
  constexpr int kZero = kBits == 8 ? 128 : 8;  // of the weights
  const int64_t count = size.block;
  for (int64_t b = 0; b < size.blocks(); ++b, x += count) {
    Floats most = all(0.0f), finite = all(0.0f);
    for (int64_t k = 0; k < count; k += kLanes) {
      const Floats values_k = load(x + k);
      most = larger(most, absolute(values_k));
      finite = multiply_add(values_k, all(0.0f), finite);
    }
    const float largest = std::max(largest_of(most), 1e-30f) + sum_of(finite);
    const Floats steps = all(127.0f / largest);
    Ints sum = all(0);
    for (int64_t k = 0; k < count; k += kLanes) {
      const Ints rounded = to_ints(multiply(load(x + k), steps));
      sum = add(sum, rounded);
      store_inputs<kBits>(place(b * count + k), rounded);
    }
    scales[b] = largest / 127.0f;
    starts[b] = kHasSignedWeights ? 0 : -kZero * sum_of(sum);
  }
}

// totals [., 64] += sums [., 64] of one block by its scales; `x` starts at the first row.
inline void add_block(const Activations& x, int64_t blocks, int64_t b, const float* scales, int64_t rows,
                      const int32_t* sums, float* totals) {
  for (int64_t t = 0; t < rows; ++t) {
    const Floats row_scale = all(x.scales[t * blocks + b]);
    for (int64_t place = t * kPanel, j = 0; j < kPanel; j += kLanes) {
      const Floats scale = multiply(row_scale, load(scales + j));
      store(totals + place + j, multiply_add(to_floats(load(sums + place + j)), scale, load(totals + place + j)));
    }
  }
}

// totals [rows, 64], with what becomes of them, to the first `columns` of each row of `out` [., N].
inline void write_rows(const Size& size, const Finish& finish, const float* totals, int64_t rows, float* out,
                       int64_t columns) {
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    const Lanes known = first_lanes(columns - j);
    const Floats bias = finish.bias ? load(finish.bias + j, known) : all(0.0f);
    for (int64_t t = 0; t < rows; ++t) {
      const Floats value = add(load(totals + t * kPanel + j), bias);
      store(out + t * size.outputs + j, finish.has_gelu ? gelu(value) : value, known);
    }
  }
}

// `multiply_rows` of one row, of two, … of kRows.
template <int kBits>
struct Tiles {
  using Tile = void (*)(const Stored*, int64_t, const Segment&, int32_t*);

  template <size_t... kRow>
  static constexpr std::array<Tile, kRows> of(std::index_sequence<kRow...>) {
    return {multiply_rows<kBits, kRow + 1>...};
  }
};

// At most kGroup rows by one panel: every block of weights is used by all tiles of rows while it is in the first-level
// cache, and the next one is on its way meanwhile. `x` and `out` [., N] start at the first row, `w`, `finish` and `out` at
// the panel.
template <int kBits>
void multiply_group(const Size& size, const Activations& x, const Weights& w, const Finish& finish, int64_t rows,
                    float* out, int64_t columns) {
  static constexpr auto tiles = Tiles<kBits>::of(std::make_index_sequence<kRows>{});
  // Rows of the output lie far apart: that their lines come while the sums are made is worth 5 %.
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t j = 0; j < kPanel; j += kLanes) __builtin_prefetch(out + t * size.outputs + j, 1);
  alignas(64) int32_t sums[kGroup * kPanel];
  alignas(64) float totals[kGroup * kPanel];
  std::fill_n(totals, rows * kPanel, 0.0f);
  const int64_t count = (rows + kRows - 1) / kRows, blocks = size.blocks();
  const int lines = count > 1 ? static_cast<int>(4 / count) : 0;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t t = 0; t < rows; ++t) std::fill_n(sums + t * kPanel, kPanel, x.starts[t * blocks + b]);
    const int64_t k = b * size.block, bytes = size.block * kPanel * kBits / 8;
    const uint8_t* values = w.values + b * bytes;
    // Tiles of equal height: 8 rows are two of four, not one of six and one of two.
    for (int64_t i = 0, first = 0; i < count; ++i) {
      const int64_t height = rows / count + (i < rows % count);
      const Segment segment{values, values + bytes + i * lines * bytes / 4, size.block, lines};
      tiles[height - 1](x.values + first * size.inputs + k, size.inputs, segment, sums + first * kPanel);
      first += height;
    }
    add_block(x, blocks, b, w.scales + b * kPanel, rows, sums, totals);
  }
  write_rows(size, finish, totals, rows, out, columns);
}

// All rows by one panel.
template <int kBits>
void panel(const Size& size, const Activations& x, const Weights& w, const Finish& finish, float* out, int64_t rows,
           int64_t number) {
  const int64_t blocks = size.blocks();
  const Weights mine{w.values + number * size.inputs * kPanel * kBits / 8, w.scales + number * blocks * kPanel};
  const Finish after{finish.bias ? finish.bias + number * kPanel : nullptr, finish.has_gelu};
  const int64_t columns = std::min<int64_t>(kPanel, size.outputs - number * kPanel);
  // Weights of 8 bits are read again by each tile: a block of theirs, all inputs, is too large for that cache.
  const int64_t count = (rows + kRows - 1) / kRows;
  const int64_t group = kBits == 4 && rows <= kGroup ? rows : (rows + count - 1) / count;
  for (int64_t first = 0; first < rows; first += group) {
    const Activations some{x.values + first * size.inputs, x.scales + first * blocks, x.starts + first * blocks};
    float* place = out + first * size.outputs + number * kPanel;
    multiply_group<kBits>(size, some, mine, after, std::min(group, rows - first), place, columns);
  }
}

}  // namespace pocketvlm
