// Functions of sixteen values at once.
#pragma once

#include "vectors.h"

namespace pocketvlm {

// e^x to 2 units in the last place: 2^n by the exponent, the rest by a polynomial (Taylor's, on half of ln 2).
inline Floats exponential(Floats x) {
  x = smaller(larger(x, all(-87.3f)), all(88.7f));
  const Floats n = nearest(multiply(x, all(1.44269504f)));
  // ln 2 in two parts: the first has few digits, so that its product with n is exact.
  Floats r = subtract_product(n, all(0.693359375f), x);
  r = subtract_product(n, all(-2.12194440e-4f), r);
  Floats p = all(1.0f / 720);
  for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f}) p = multiply_add(p, r, all(term));
  return times_power(p, n);
}

inline Floats sigmoid(Floats x) {
  const Floats one = all(1.0f);
  return divide(one, add(one, exponential(subtract(all(0.0f), x))));
}

inline Floats silu(Floats x) { return multiply(x, sigmoid(x)); }

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh as a sigmoid.
inline Floats gelu(Floats x) {
  const Floats cubic = multiply_add(multiply(x, x), all(0.044715f), all(1.0f));
  const Floats power = exponential(multiply(multiply(x, cubic), all(-1.5957691216f)));
  return multiply(x, reciprocal(add(all(1.0f), power)));
}

inline float sum_of_squares(const float* x, int64_t count) {
  Floats sum = all(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats values = load(x + i);
    sum = multiply_add(values, values, sum);
  }
  return sum_of(sum);
}

}  // namespace pocketvlm
