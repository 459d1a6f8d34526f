// Products of int8 activations with weights of 8 or 4 bits, on AVX-512 with VNNI.
//
// Weights lie in the order in which they are read: panels of 64 outputs, in each panel four (8 bits) or eight (4 bits)
// inputs of all 64, then the next four or eight. A weight is stored without sign, 128 or 8 above its value; what that
// adds to a product is 128 or 8 times the sum of the activations, which the sum begins with.
//
// Shapes:  T rows (tokens) · K inputs · N outputs · B blocks of inputs that share a scale · P panels of 64 outputs
#pragma once

#if !defined(__AVX512VNNI__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__)
#error "this processor has no AVX-512 with VNNI"
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "vector_math.h"

namespace pocketvlm {

constexpr int kPanel = 64;   // outputs of a panel: four registers of 16
constexpr int kRows = 6;     // of a tile: 24 sums, 4 registers of weights, one of activations
constexpr int64_t kGroup = 24;     // most rows for which it matters that weights come from memory

// Activations of some rows in int8: values [T, K], scales [T, B], and minus the sums [T, B] times the weights' zero.
struct Activations {
  int8_t* values;
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

// One row: each block by its largest value, symmetric, to the nearest of 255 steps.
inline void quantize_row(const float* x, const Size& size, int zero, int8_t* values, float* scales, int32_t* starts) {
  const int64_t count = size.block;
  for (int64_t b = 0; b < size.blocks(); ++b, x += count, values += count) {
    __m512 most = _mm512_setzero_ps();
    for (int64_t k = 0; k < count; k += kLanes) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + k)));
    const float largest = std::max(_mm512_reduce_max_ps(most), 1e-30f);
    const __m512 steps = _mm512_set1_ps(127.0f / largest);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < count; k += kLanes) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + k), steps));
      sum = _mm512_add_epi32(sum, rounded);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(values + k), _mm512_cvtsepi32_epi8(rounded));
    }
    scales[b] = largest / 127.0f;
    starts[b] = -zero * _mm512_reduce_add_epi32(sum);
  }
}

// Four registers of 16 outputs each.
struct Four {
  __m512i a, b, c, d;
};

inline Four zeros() {
  return {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
}

// Weights of four inputs and 64 outputs: whole bytes, or their lower or upper halves.
enum class Part { kWhole, kLower, kUpper };

template <Part kPart>
inline __m512i load_one(const uint8_t* at) {
  const __m512i bytes = _mm512_loadu_si512(at);
  if (kPart == Part::kWhole) return bytes;
  return _mm512_and_si512(kPart == Part::kUpper ? _mm512_srli_epi16(bytes, 4) : bytes, _mm512_set1_epi8(0x0f));
}

template <Part kPart>
inline Four load(const uint8_t* at) {
  return {load_one<kPart>(at), load_one<kPart>(at + 64), load_one<kPart>(at + 128), load_one<kPart>(at + 192)};
}

// Four inputs of a row by their weights, added to its sums. As text, because GCC would fetch the inputs of all rows
// first, and then has no registers left for the sums.
inline void dot(Four& sum, const Four& weights, const int8_t* inputs) {
  __m512i all;
  __asm__(
      "vpbroadcastd %[inputs], %[all]\n\t"
      "vpdpbusd %[all], %[w0], %[s0]\n\t"
      "vpdpbusd %[all], %[w1], %[s1]\n\t"
      "vpdpbusd %[all], %[w2], %[s2]\n\t"
      "vpdpbusd %[all], %[w3], %[s3]"
      : [s0] "+v"(sum.a), [s1] "+v"(sum.b), [s2] "+v"(sum.c), [s3] "+v"(sum.d), [all] "=&v"(all)
      : [w0] "v"(weights.a), [w1] "v"(weights.b), [w2] "v"(weights.c), [w3] "v"(weights.d),
        [inputs] "m"(*reinterpret_cast<const char(*)[4]>(inputs)));
}

inline Four fetch(const int32_t* at) {
  return {_mm512_load_si512(at), _mm512_load_si512(at + 16), _mm512_load_si512(at + 32), _mm512_load_si512(at + 48)};
}

inline void store(int32_t* out, const Four& sum) {
  _mm512_store_si512(out, sum.a), _mm512_store_si512(out + 16, sum.b);
  _mm512_store_si512(out + 32, sum.c), _mm512_store_si512(out + 48, sum.d);
}

// A block of a panel, and where the weights are that come next.
struct Segment {
  const uint8_t* values;
  const uint8_t* next;
  int64_t inputs;
  int lines;  // of 64 bytes that each step asks memory for: all tiles together ask for the whole next block
};

// Products of a tile's rows with a segment, added to int32 [rows, 64]. A function of its own, and rows that are numbered
// by the compiler, keep all sums in registers.
template <int kBits, size_t... kRow>
__attribute__((noinline)) void multiply_segment(std::index_sequence<kRow...>, const int8_t* x, int64_t stride,
                                                const Segment& segment, int32_t* out) {
  const uint8_t *w = segment.values, *next = segment.next;
  const int lines = segment.lines;
  Four sum[] = {fetch(out + kRow * kPanel)...};
  for (const int8_t* end = x + segment.inputs; x < end; w += 4 * 64) {
    for (int i = 0; i < lines; ++i, next += 64) _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
    const Four lower = load<kBits == 8 ? Part::kWhole : Part::kLower>(w);
    (dot(sum[kRow], lower, x + kRow * stride), ...);
    x += 4;
    if (kBits == 4) {
      __asm__ volatile("" ::: "memory");  // what is read twice takes no registers between
      const Four upper = load<Part::kUpper>(w);
      (dot(sum[kRow], upper, x + kRow * stride), ...);
      x += 4;
    }
  }
  (store(out + kRow * kPanel, sum[kRow]), ...);
}

template <int kBits, int kCount>
void multiply_rows(const int8_t* x, int64_t stride, const Segment& segment, int32_t* out) {
  multiply_segment<kBits>(std::make_index_sequence<kCount>{}, x, stride, segment, out);
}

// totals [., 64] += sums [., 64] of one block by its scales; `x` starts at the first row.
inline void add_block(const Activations& x, int64_t blocks, int64_t b, const float* scales, int64_t rows,
                      const int32_t* sums, float* totals) {
  for (int64_t t = 0; t < rows; ++t) {
    const __m512 row_scale = _mm512_set1_ps(x.scales[t * blocks + b]);
    for (int64_t place = t * kPanel, j = 0; j < kPanel; j += kLanes) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + place + j));
      const __m512 scale = _mm512_mul_ps(row_scale, _mm512_loadu_ps(scales + j));
      _mm512_store_ps(totals + place + j, _mm512_fmadd_ps(sum, scale, _mm512_load_ps(totals + place + j)));
    }
  }
}

// totals [rows, 64], with what becomes of them, to the first `columns` of each row of `out` [., N].
inline void write_rows(const Size& size, const Finish& finish, const float* totals, int64_t rows, float* out,
                       int64_t columns) {
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    const auto mask = static_cast<__mmask16>((1u << std::clamp<int64_t>(columns - j, 0, kLanes)) - 1);
    const __m512 bias = finish.bias ? _mm512_maskz_loadu_ps(mask, finish.bias + j) : _mm512_setzero_ps();
    for (int64_t t = 0; t < rows; ++t) {
      const __m512 value = _mm512_add_ps(_mm512_load_ps(totals + t * kPanel + j), bias);
      _mm512_mask_storeu_ps(out + t * size.outputs + j, mask, finish.has_gelu ? gelu(value) : value);
    }
  }
}

// At most kGroup rows by one panel: every block of weights is used by all tiles of rows while it is in the first-level
// cache, and the next one is on its way meanwhile. `x` and `out` [., N] start at the first row, `w`, `finish` and `out` at
// the panel.
template <int kBits>
void multiply_group(const Size& size, const Activations& x, const Weights& w, const Finish& finish, int64_t rows,
                    float* out, int64_t columns) {
  using Tile = void (*)(const int8_t*, int64_t, const Segment&, int32_t*);
  static constexpr Tile tiles[] = {multiply_rows<kBits, 1>, multiply_rows<kBits, 2>, multiply_rows<kBits, 3>,
                                   multiply_rows<kBits, 4>, multiply_rows<kBits, 5>, multiply_rows<kBits, 6>};
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
