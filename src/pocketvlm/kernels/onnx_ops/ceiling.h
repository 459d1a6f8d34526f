// What this processor's registers can multiply at best: no sum waits for another, and nothing is read from memory.
#pragma once

#include <cstdint>
#include <utility>

#include "products.h"
#include "tiles.h"

namespace pocketvlm::ceiling {

// `add_products`: sums += kProducts products of bytes. The sums have 32 bits, 16 on AVX2 without VNNI, where 8 bits by 8
// do not fit and products of ours are slower for that. As text, or kept by one, because a compiler would leave out what
// nobody reads.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)

using Register = __m512i;
constexpr int kProducts = 64;
inline Register every(int8_t byte) { return _mm512_set1_epi8(byte); }
inline void add_products(Register& sum, Register some) {
  __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(sum) : "v"(some));
}

#elif defined(__AVX2__)

using Register = __m256i;
inline Register every(int8_t byte) { return _mm256_set1_epi8(byte); }
#if POCKETVLM_DOT_BYTES
constexpr int kProducts = 32;
inline void add_products(Register& sum, Register some) {
#if defined(__AVXVNNI__)
  sum = _mm256_dpbusd_avx_epi32(sum, some, some);
#else
  sum = _mm256_dpbusd_epi32(sum, some, some);
#endif
  __asm__ volatile("" : "+x"(sum));
}
#else
constexpr int kProducts = 32;
inline void add_products(Register& sum, Register some) {
  Register products;
  __asm__ volatile("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(some));
}
#endif

#else

using Register = int32x4_t;
constexpr int kProducts = 16;
inline Register every(int8_t byte) { return vreinterpretq_s32_s8(vdupq_n_s8(byte)); }
inline void add_products(Register& sum, Register some) {
  sum = vdotq_s32(sum, vreinterpretq_s8_s32(some), vreinterpretq_s8_s32(some));
  __asm__ volatile("" : "+w"(sum));
}

#endif

constexpr size_t kSums = 12;  // more than one unit can have under way

template <size_t... kSum>
__attribute__((noinline)) int64_t multiply(std::index_sequence<kSum...>, int64_t turns) {
  const Register some = every(1);
  Register sum[] = {(static_cast<void>(kSum), every(0))...};
  for (int64_t turn = 0; turn < turns; ++turn) (add_products(sum[kSum], some), ...);
  return turns * 2 * kProducts * static_cast<int64_t>(sizeof...(kSum));
}

#if POCKETVLM_TILES

inline int64_t multiply_tiles(int64_t turns) {
  alignas(64) static const uint8_t zeros[tiles::kRows * tiles::kBytes] = {};
  tiles::begin();
  tiles::load<4>(zeros, tiles::kBytes), tiles::load<5>(zeros, tiles::kBytes);
  tiles::load<6>(zeros, tiles::kBytes), tiles::load<7>(zeros, tiles::kBytes);
  for (int64_t turn = 0; turn < turns; ++turn)
    tiles::dot<0, 4, 6>(), tiles::dot<1, 4, 7>(), tiles::dot<2, 5, 6>(), tiles::dot<3, 5, 7>();
  tiles::end();
  return turns * 4 * 2 * tiles::kRows * tiles::kRows * tiles::kBytes;
}

#endif

// Multiplies for so many turns on this thread; returns how many operations that were, a product and its sum being two.
inline int64_t operations(int64_t turns) {
#if POCKETVLM_TILES
  if (tiles::granted()) return multiply_tiles(turns);
#endif
  return multiply(std::make_index_sequence<kSums>{}, turns);
}

}  // namespace pocketvlm::ceiling
