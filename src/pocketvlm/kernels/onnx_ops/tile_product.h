// Products of int8 activations with weights of 8 bits on tile registers, where there are rows enough to fill them.
//
// Panels serve as they lie in memory: 16 outputs of 16 steps of four inputs are a tile. Sums are the same integers as
// those of quantized_product.h, so results are equal to the bit.
//
// Two tiles of rows by two of outputs are multiplied at once: four loads for four products, one line a cycle. That is
// more than the second-level cache gives, so that 32 rows stay in the first while the weights of some panels, which stay
// in the second, go by; of long rows some inputs at a time.
#pragma once

#include <thread>

#include "quantized_product.h"
#include "tiles.h"

namespace pocketvlm {

static_assert(sizeof(Stored) == 1 && !kHasSignedWeights, "tiles read inputs and weights as AVX-512 does");

constexpr int64_t kTileLeast = 12;  // rows: fewer are sooner done without tiles
constexpr int64_t kTileInputs = tiles::kBytes, kTileBytes = tiles::kRows * tiles::kBytes;
constexpr int64_t kTileGroup = 2 * tiles::kRows;  // rows at once
constexpr int64_t kTileChunk = 18;                // most tiles of inputs at once: 36 KiB of 32 rows
constexpr int64_t kTileWeights = 3 << 18;         // bytes of weights that stay in the second-level cache
constexpr int64_t kTileTall = 8;                  // most groups of rows of a task
// Panels of a task whose inputs are not all multiplied at once, so that the sums of each wait for the others.
constexpr int64_t kTileWaiting = kTileWeights / ((kTileChunk * kTileInputs + 1) * kPanel);

inline bool suits_tiles(const Size& size, int64_t bits, int64_t rows) {
  return bits == 8 && rows >= kTileLeast && size.block == size.inputs && size.inputs >= kTileInputs && tiles::granted();
}

// Rows of int8 in tiles: [rows / 16, inputs / 64, 16, 64], with zeros behind the last input.
struct TileRows {
  int8_t* values;
  int64_t inputs, tiles;  // of a row

  TileRows(int8_t* at, int64_t count) : values(at), inputs(count), tiles((count + kTileInputs - 1) / kTileInputs) {}

  static int64_t bytes(int64_t rows, int64_t inputs) {
    const int64_t groups = (rows + kTileGroup - 1) / kTileGroup;
    return groups * kTileGroup * ((inputs + kTileInputs - 1) / kTileInputs) * kTileInputs;
  }
  const int8_t* tile(int64_t row, int64_t number) const {
    return values + (row / tiles::kRows * tiles + number) * kTileBytes;
  }
  int8_t* place(int64_t row, int64_t k) const {
    return values + (row / tiles::kRows * tiles + k / kTileInputs) * kTileBytes + row % tiles::kRows * kTileInputs +
           k % kTileInputs;
  }
  // Zeros behind a row's last input.
  void end(int64_t row) const {
    const int64_t rest = inputs % kTileInputs;
    if (rest) std::memset(place(row, inputs), 0, kTileInputs - rest);
  }
};

// How the work is cut: tasks of some panels by some groups of rows, at least two for each thread where there is so much.
// Results do not depend on it.
struct TileTasks {
  int64_t panels, groups, wide, tall;  // of all; of a task

  TileTasks(const Size& size, int64_t rows) {
    const int64_t wanted = std::max<int64_t>(16, 2 * std::thread::hardware_concurrency());
    panels = (size.outputs + kPanel - 1) / kPanel, groups = (rows + kTileGroup - 1) / kTileGroup;
    wide = std::clamp<int64_t>(kTileWeights / (size.inputs * kPanel), 1, panels), tall = std::min(groups, kTileTall);
    while (count() < wanted && wide > 1) --wide;
    while (count() < wanted && tall > 1) --tall;
    wide = (panels + across() - 1) / across(), tall = (groups + down() - 1) / down();
  }
  int64_t across() const { return (panels + wide - 1) / wide; }
  int64_t down() const { return (groups + tall - 1) / tall; }
  int64_t count() const { return across() * down(); }
};

// Sums [rows, 64] of a panel that are whole, and where they go: each row with what becomes of it, as `add_block` and
// `write_rows` do it together, the same roundings in the same order. GELU waits for the products of the next panel, between
// which its rows are written: tiles leave the vectors idle.
struct Finished {
  const int32_t *sums = nullptr, *starts = nullptr;          // of the next row
  const float *row_scales = nullptr, *scales = nullptr, *bias = nullptr;
  float* out = nullptr;
  int64_t rows = 0, stride = 0, columns = 0;
  bool has_gelu = false;

  void some(int64_t count) {
    count = std::min(count, rows);
    if (count > 0) has_gelu ? write<true>(count) : write<false>(count);
  }

  template <bool kHasGelu>
  void write(int64_t count) {
    constexpr int kVectors = kPanel / kLanes;
    Floats scale[kVectors], added[kVectors];
    Lanes known[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      known[i] = first_lanes(columns - i * kLanes);
      scale[i] = load(scales + i * kLanes);
      added[i] = bias ? load(bias + i * kLanes, known[i]) : all(0.0f);
    }
    for (rows -= count; count > 0; --count, sums += kPanel, ++starts, ++row_scales, out += stride) {
      const Floats row_scale = all(*row_scales);
      const Ints start = all(*starts);
      for (int i = 0; i < kVectors; ++i) {
        const Floats sum = to_floats(add(load(sums + i * kLanes), start));
        const Floats value = add(multiply_add(sum, multiply(row_scale, scale[i]), all(0.0f)), added[i]);
        store(out + i * kLanes, kHasGelu ? gelu(value) : value, known[i]);
      }
    }
  }
};

// kTall times 16 rows by 32 outputs of a panel: int32 sums [., 64], from nothing or from what they are, += `count` tiles of
// rows, the upper ones `next` bytes behind the lower ones, times `w`; of the last tile of weights from `last`. Meanwhile
// some rows of `before` are written, and the lines of `soon` are asked for, if it is not null: 16 rows of the output
// `soon_stride` apart.
template <int kTall, bool kHasBefore>
void multiply_tiles(const int8_t* x, int64_t next, const uint8_t* w, const uint8_t* last, int64_t count, bool is_first,
                    int32_t* sums, Finished& before, const float* soon, int64_t soon_stride) {
  constexpr int64_t kStep = 4 * kPanel, kSums = sizeof(int32_t) * kPanel, kNext = kPanel * tiles::kRows;
  if (is_first) {
    tiles::clear<0>(), tiles::clear<1>();
    if (kTall == 2) tiles::clear<2>(), tiles::clear<3>();
  } else {
    tiles::load<0>(sums, kSums), tiles::load<1>(sums + 16, kSums);
    if (kTall == 2) tiles::load<2>(sums + kNext, kSums), tiles::load<3>(sums + kNext + 16, kSums);
  }
  const int64_t each = (kTileGroup + 2 * count - 1) / (2 * count), asked_each = (tiles::kRows + count - 1) / count;
  const float* soon_end = soon + tiles::kRows * soon_stride;
  for (int64_t i = 0; i < count; ++i, x += kTileBytes, w += kTileInputs * kPanel) {
    if (i + 1 == count) w = last;
    for (int64_t t = 0; soon && t < asked_each && soon < soon_end; ++t, soon += soon_stride)
      for (int64_t j = 0; j < kPanel; j += kLanes) __builtin_prefetch(soon + j, 1);
    tiles::load<4>(x, kTileInputs), tiles::load_once<6>(w, kStep), tiles::load_once<7>(w + 64, kStep);
    tiles::dot<0, 4, 6>(), tiles::dot<1, 4, 7>();
    if (kTall == 2) {
      tiles::load<5>(x + next, kTileInputs);
      tiles::dot<2, 5, 6>(), tiles::dot<3, 5, 7>();
    }
    if (kHasBefore) before.some(each);
  }
  tiles::store<0>(sums, kSums), tiles::store<1>(sums + 16, kSums);
  if (kTall == 2) tiles::store<2>(sums + kNext, kSums), tiles::store<3>(sums + kNext + 16, kSums);
}

// One of the tasks.
inline void multiply_task(const Size& size, const TileTasks& tasks, const TileRows& x, const Activations& of,
                          const Weights& weights, const Finish& finish, float* out, int64_t rows, int64_t number) {
  const int64_t first_panel = number % tasks.across() * tasks.wide, first_group = number / tasks.across() * tasks.tall;
  const int64_t panels = std::min(tasks.wide, tasks.panels - first_panel);
  const int64_t end = std::min(rows, (first_group + tasks.tall) * kTileGroup);
  const int64_t rest = size.inputs % kTileInputs, bytes = size.inputs * kPanel;
  const bool is_cut = x.tiles > kTileChunk;  // then sums of all panels wait for the next inputs
  const int64_t chunks = (x.tiles + kTileChunk - 1) / kTileChunk, chunk = (x.tiles + chunks - 1) / chunks;
  static_assert(kTileWaiting >= 2, "two panels' sums at least");
  alignas(64) static thread_local int32_t sums[kTileWaiting * kTileGroup * kPanel];
  // Rows that lie so far apart would all come to the same few lines of the first-level cache.
  const bool may_ask = size.outputs * sizeof(float) % 4096 != 0;
  alignas(64) uint8_t tail[kTileInputs * kPanel] = {};
  Finished before;
  int64_t place_of = 0;  // which of the two sums is free
  tiles::begin();
  for (int64_t row = first_group * kTileGroup; row < end; row += kTileGroup) {
    const int64_t mine = std::min(kTileGroup, end - row);
    const auto multiply = mine > tiles::kRows ? (finish.has_gelu ? multiply_tiles<2, true> : multiply_tiles<2, false>)
                                              : multiply_tiles<1, false>;
    for (int64_t k = 0; k < x.tiles; k += chunk) {
      const int64_t count = std::min(chunk, x.tiles - k);
      const bool is_last = k + count == x.tiles;
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t panel = first_panel + p;
        const uint8_t* w = weights.values + panel * bytes + k * kTileInputs * kPanel;
        const uint8_t* last = w + (count - 1) * kTileInputs * kPanel;
        int32_t* sums_of = sums + (is_cut ? p : (place_of ^= 1)) * kTileGroup * kPanel;
        if (is_last && rest) {  // behind the last input is another panel, or nothing
          std::memcpy(tail, last, rest * kPanel);
          last = tail;
        }
        float* place = out + row * size.outputs + panel * kPanel;
        const int64_t columns = std::min<int64_t>(kPanel, size.outputs - panel * kPanel);
        const bool asks = may_ask && is_last && mine == kTileGroup && columns == kPanel;
        for (int64_t half = 0; half < 2; ++half)
          multiply(x.tile(row, k), x.tiles * kTileBytes, w + 128 * half, last + 128 * half, count, k == 0,
                   sums_of + 32 * half, before, asks ? place + half * tiles::kRows * size.outputs : nullptr,
                   size.outputs);
        if (!is_last) continue;
        before.some(kTileGroup);
        before = {sums_of, of.starts + row, of.scales + row, weights.scales + panel * kPanel,
                  finish.bias ? finish.bias + panel * kPanel : nullptr, place, mine, size.outputs, columns,
                  finish.has_gelu};
        if (!finish.has_gelu) before.some(kTileGroup);  // too little to do for what it takes of the first-level cache
      }
    }
    if (is_cut) before.some(kTileGroup);  // its sums are begun anew
  }
  before.some(kTileGroup);
  tiles::end();
}

}  // namespace pocketvlm
