// Functions of 16 values at once, on AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace pocketvlm {

constexpr int kLanes = 16;

// e^x to 2 units in the last place: 2^n by the exponent, the rest by a polynomial (Taylor's, on half of ln 2).
inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.3f)), _mm512_set1_ps(88.7f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  // ln 2 in two parts: the first has few digits, so that its product with n is exact.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(p, n);
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline __m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh as a sigmoid; its quotient from 14 bits by one step of Newton's.
inline __m512 gelu(__m512 x) {
  const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
  const __m512 power = exponential(_mm512_mul_ps(_mm512_mul_ps(x, cubic), _mm512_set1_ps(-1.5957691216f)));
  const __m512 below = _mm512_add_ps(_mm512_set1_ps(1.0f), power), near = _mm512_rcp14_ps(below);
  return _mm512_mul_ps(x, _mm512_mul_ps(near, _mm512_fnmadd_ps(below, near, _mm512_set1_ps(2.0f))));
}

inline float sum_of_squares(const float* x, int64_t count) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512 values = _mm512_loadu_ps(x + i);
    sum = _mm512_fmadd_ps(values, values, sum);
  }
  return _mm512_reduce_add_ps(sum);
}

}  // namespace pocketvlm
