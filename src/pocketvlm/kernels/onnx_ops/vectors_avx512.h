// Sixteen values in one register of AVX-512.
#pragma once

#include <immintrin.h>

namespace pocketvlm {

using Floats = __m512;
using Ints = __m512i;
using Lanes = __mmask16;  // some of the first ones
constexpr int kSums = 16;  // of Floats in registers, beside what is added to them

// The first `count` lanes, which may be fewer than none or more than all.
inline Lanes first_lanes(int64_t count) { return (1u << std::clamp<int64_t>(count, 0, kLanes)) - 1; }

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* at) { return _mm512_loadu_ps(at); }
inline Floats load(const float* at, Lanes known) { return _mm512_maskz_loadu_ps(known, at); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline void store(float* to, Floats x, Lanes wanted) { _mm512_mask_storeu_ps(to, wanted, x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats absolute(Floats a) { return _mm512_abs_ps(a); }
// a b + c, and c - a b, rounded once.
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats subtract_product(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats nearest(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
// p 2^n, where n is whole, from -126 to 128.
inline Floats times_power(Floats p, Floats n) { return _mm512_scalef_ps(p, n); }
// 1 / x, to 3e-8 of its size: 14 bits, and one step of Newton's.
inline Floats reciprocal(Floats x) {
  const Floats near = _mm512_rcp14_ps(x);
  return multiply(near, subtract_product(x, near, all(2.0f)));
}
inline float largest_of(Floats a) { return _mm512_reduce_max_ps(a); }
inline float sum_of(Floats a) { return _mm512_reduce_add_ps(a); }
// `b` in some lanes, `a` in the others.
inline Floats choose(Lanes lanes, Floats a, Floats b) { return _mm512_mask_blend_ps(lanes, a, b); }

inline Ints all(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints load(const int32_t* at) { return _mm512_loadu_si512(at); }
inline void store(int32_t* to, Ints x) { _mm512_storeu_si512(to, x); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints to_ints(Floats a) { return _mm512_cvtps_epi32(a); }  // the nearest
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline int32_t sum_of(Ints a) { return _mm512_reduce_add_epi32(a); }
inline Ints only(Lanes lanes, Ints a) { return _mm512_maskz_mov_epi32(lanes, a); }
// The lower halves of `low`, and those of `high` above them.
inline Ints in_pairs(Ints low, Ints high) {
  return _mm512_or_si512(_mm512_and_si512(low, all(0xffff)), _mm512_slli_epi32(high, 16));
}
inline void store_halves(int16_t* to, Ints a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(a));
}

// One step of a fast Hadamard transform: of two lanes `kDistance` apart the lower gets the sum, the upper lower minus
// upper.
template <int kDistance>
Floats butterfly(Floats a) {
  const Ints lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const Ints other = _mm512_xor_si512(lane, all(kDistance));
  const Lanes upper = _mm512_test_epi32_mask(lane, all(kDistance));
  return add(_mm512_permutexvar_ps(other, a), _mm512_mask_sub_ps(a, upper, _mm512_setzero_ps(), a));
}

}  // namespace pocketvlm
