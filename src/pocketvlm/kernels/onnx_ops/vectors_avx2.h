// Sixteen values in two registers of AVX2.
#pragma once

#include <immintrin.h>

namespace pocketvlm {

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};
using Lanes = int;  // how many of the first ones
constexpr int kSums = 4;  // of Floats in registers beside what is added to them

inline Lanes first_lanes(int64_t count) { return static_cast<Lanes>(std::clamp<int64_t>(count, 0, kLanes)); }

// All bits of the first lanes of each half.
inline Ints mask_of(Lanes lanes) {
  const __m256i count = _mm256_set1_epi32(lanes);
  return {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}

inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
inline Floats load(const float* at, Lanes known) {
  if (known == kLanes) return load(at);
  const Ints mask = mask_of(known);
  return {_mm256_maskload_ps(at, mask.low), _mm256_maskload_ps(at + 8, mask.high)};
}
inline void store(float* to, Floats x) { _mm256_storeu_ps(to, x.low), _mm256_storeu_ps(to + 8, x.high); }
inline void store(float* to, Floats x, Lanes wanted) {
  if (wanted == kLanes) return store(to, x);
  const Ints mask = mask_of(wanted);
  _mm256_maskstore_ps(to, mask.low, x.low), _mm256_maskstore_ps(to + 8, mask.high, x.high);
}
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats subtract(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats multiply(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats divide(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Floats smaller(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Floats larger(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats absolute(Floats a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
// a b + c, and c - a b, rounded once.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats subtract_product(Floats a, Floats b, Floats c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
inline Floats nearest(Floats a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
}
// 1 / x.
inline Floats reciprocal(Floats x) { return divide(all(1.0f), x); }
inline float largest_of(Floats a) {
  const __m256 both = _mm256_max_ps(a.low, a.high);
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}
inline float sum_of(Floats a) {
  const __m256 both = _mm256_add_ps(a.low, a.high);
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
// `b` in some lanes, `a` in the others.
inline Floats choose(Lanes lanes, Floats a, Floats b) {
  const Ints mask = mask_of(lanes);
  return {_mm256_blendv_ps(a.low, b.low, _mm256_castsi256_ps(mask.low)),
          _mm256_blendv_ps(a.high, b.high, _mm256_castsi256_ps(mask.high))};
}

inline Ints all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints load(const int32_t* at) {
  const auto* from = reinterpret_cast<const __m256i*>(at);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
inline void store(int32_t* to, Ints x) {
  auto* place = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(place, x.low), _mm256_storeu_si256(place + 1, x.high);
}
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Ints to_ints(Floats a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }  // the nearest
inline Floats to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline int32_t sum_of(Ints a) {
  const __m256i both = _mm256_add_epi32(a.low, a.high);
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}
inline Ints only(Lanes lanes, Ints a) {
  const Ints mask = mask_of(lanes);
  return {_mm256_and_si256(a.low, mask.low), _mm256_and_si256(a.high, mask.high)};
}
// p 2^n, where n is whole, from -126 to 128; two steps, since 2^128 is no number.
inline Floats times_power(Floats p, Floats n) {
  const auto power = [](__m256i exponent) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
  };
  const Ints whole = to_ints(n);
  const Ints half{_mm256_srai_epi32(whole.low, 1), _mm256_srai_epi32(whole.high, 1)};
  const Floats first{power(half.low), power(half.high)};
  const Floats rest{power(_mm256_sub_epi32(whole.low, half.low)), power(_mm256_sub_epi32(whole.high, half.high))};
  return multiply(multiply(p, first), rest);
}
// The lower halves of `low`, and those of `high` above them.
inline Ints in_pairs(Ints low, Ints high) {
  return {_mm256_blend_epi16(low.low, _mm256_slli_epi32(high.low, 16), 0xaa),
          _mm256_blend_epi16(low.high, _mm256_slli_epi32(high.high, 16), 0xaa)};
}
// As 16 bits, which they must fit.
inline __m256i halves_of(Ints a) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8); }
inline void store_halves(int16_t* to, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves_of(a)); }

// One step of a fast Hadamard transform: of two lanes `kDistance` apart the lower gets the sum, the upper lower minus
// upper.
template <int kDistance>
Floats butterfly(Floats a) {
  if (kDistance == 8) return {_mm256_add_ps(a.high, a.low), _mm256_sub_ps(a.low, a.high)};
  const auto half = [](__m256 x) {
    const __m256 sign = kDistance == 4   ? _mm256_setr_ps(0, 0, 0, 0, -0.0f, -0.0f, -0.0f, -0.0f)
                        : kDistance == 2 ? _mm256_setr_ps(0, 0, -0.0f, -0.0f, 0, 0, -0.0f, -0.0f)
                                         : _mm256_setr_ps(0, -0.0f, 0, -0.0f, 0, -0.0f, 0, -0.0f);
    const __m256 other = kDistance == 4   ? _mm256_permute2f128_ps(x, x, 1)
                         : kDistance == 2 ? _mm256_permute_ps(x, 0x4e)
                                          : _mm256_permute_ps(x, 0xb1);
    return _mm256_add_ps(other, _mm256_xor_ps(x, sign));
  };
  return {half(a.low), half(a.high)};
}

}  // namespace pocketvlm
