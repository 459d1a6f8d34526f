// What happens to the inputs of a product that closes a block: norm by heads, gate, rotation.
//
// Shapes:  K inputs of the product · E head dim
#pragma once

#include <cmath>

#include "vector_math.h"

namespace pocketvlm {

constexpr int kMixed = 32;  // inputs that a rotation mixes

enum class Activation : int64_t { kNone = 0, kSilu = 1, kSigmoid = 2 };

// Hadamard's matrix over 32 values that lie in two registers, each of size 32^-0.5: sums and differences at distances
// 16, 8, 4, 2, 1.
inline void mix(__m512& a, __m512& b) {
  const __m512 sum = _mm512_add_ps(a, b), difference = _mm512_sub_ps(a, b);
  a = sum, b = difference;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int distance = 8; distance; distance /= 2) {
    const __m512i other = _mm512_xor_si512(lane, _mm512_set1_epi32(distance));
    const __mmask16 upper = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(distance));
    // The lower of two gets their sum, the upper lower minus upper.
    a = _mm512_add_ps(_mm512_permutexvar_ps(other, a), _mm512_mask_sub_ps(a, upper, _mm512_setzero_ps(), a));
    b = _mm512_add_ps(_mm512_permutexvar_ps(other, b), _mm512_mask_sub_ps(b, upper, _mm512_setzero_ps(), b));
  }
  const __m512 size = _mm512_set1_ps(0.17677669529663687f);
  a = _mm512_mul_ps(a, size), b = _mm512_mul_ps(b, size);
}

struct Gate {
  Activation activation;  // of the gate's values, which the inputs are multiplied by
  int64_t head;           // E of the norm before, 0 for none
  float epsilon;
  bool rotates;

  bool changes() const { return activation != Activation::kNone || head || rotates; }

  // One row: `x` and `gate` [K], `weight` [E] of the norm, to `out` [K].
  void apply(const float* x, const float* gate, const float* weight, int64_t inputs, float* out) const {
    const int64_t width = head ? head : inputs;
    for (int64_t first = 0; first < inputs; first += width) {
      __m512 scale = _mm512_set1_ps(1.0f);
      if (head) scale = _mm512_set1_ps(1.0f / std::sqrt(sum_of_squares(x + first, width) / width + epsilon));
      for (int64_t k = first; k < first + width; k += kLanes) {
        __m512 value = _mm512_loadu_ps(x + k);
        if (head) value = _mm512_mul_ps(_mm512_mul_ps(value, scale), _mm512_loadu_ps(weight + k - first));
        if (activation == Activation::kSilu) value = _mm512_mul_ps(value, silu(_mm512_loadu_ps(gate + k)));
        if (activation == Activation::kSigmoid) value = _mm512_mul_ps(value, sigmoid(_mm512_loadu_ps(gate + k)));
        _mm512_storeu_ps(out + k, value);
      }
    }
    for (int64_t k = 0; rotates && k < inputs; k += kMixed) {
      __m512 a = _mm512_loadu_ps(out + k), b = _mm512_loadu_ps(out + k + kLanes);
      mix(a, b);
      _mm512_storeu_ps(out + k, a), _mm512_storeu_ps(out + k + kLanes, b);
    }
  }
};

}  // namespace pocketvlm
