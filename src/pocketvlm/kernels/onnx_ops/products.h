// Integer products of a few rows by weights that lie as they are read: the part of a product that each kind of
// processor has instructions of its own for. Each of the three headers has the same names, and gives the same integers.
//
// `multiply_rows`: int8 by the unsigned 8 or 4 bits of a panel, see quantized_product.h; `multiply_pairs`: 16 bits by 16
// bits, see view_attention.h.
#pragma once

#include <cstdint>
#include <utility>

#include "vectors.h"

namespace pocketvlm {

constexpr int kPanel = 64;  // outputs of a panel

// Some inputs of a panel, and where the weights are that come next.
struct Segment {
  const uint8_t* values;
  const uint8_t* next;
  int64_t inputs;
  int lines;  // of 64 bytes that each step asks memory for: all tiles together ask for the whole next block
};

// Weights of four inputs: whole bytes, or their lower or upper halves.
enum class Part { kWhole, kLower, kUpper };

}  // namespace pocketvlm

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "products_avx512.h"
#elif defined(__AVX2__)
#include "products_avx2.h"
#else
#include "products_neon.h"
#endif
