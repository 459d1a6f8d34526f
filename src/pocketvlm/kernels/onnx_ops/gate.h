// What happens to the inputs of a product that closes a block: norm by heads, gate, rotation.
//
// Shapes:  K inputs of the product · E head dim
#pragma once

#include <cmath>

#include "vector_math.h"

namespace pocketvlm {

constexpr int kMixed = 32;  // inputs that a rotation mixes

enum class Activation : int64_t { kNone = 0, kSilu = 1, kSigmoid = 2 };

// Hadamard's matrix over 32 values that lie in two times sixteen, each of size 32^-0.5: sums and differences at distances
// 16, 8, 4, 2, 1.
inline void mix(Floats& a, Floats& b) {
  const Floats sum = add(a, b), difference = subtract(a, b), size = all(0.17677669529663687f);
  const auto rest = [&](Floats x) {
    return multiply(butterfly<1>(butterfly<2>(butterfly<4>(butterfly<8>(x)))), size);
  };
  a = rest(sum), b = rest(difference);
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
      Floats scale = all(1.0f);
      if (head) scale = all(1.0f / std::sqrt(sum_of_squares(x + first, width) / width + epsilon));
      for (int64_t k = first; k < first + width; k += kLanes) {
        Floats value = load(x + k);
        if (head) value = multiply(multiply(value, scale), load(weight + k - first));
        if (activation == Activation::kSilu) value = multiply(value, silu(load(gate + k)));
        if (activation == Activation::kSigmoid) value = multiply(value, sigmoid(load(gate + k)));
        store(out + k, value);
      }
    }
    for (int64_t k = 0; rotates && k < inputs; k += kMixed) {
      Floats a = load(out + k), b = load(out + k + kLanes);
      mix(a, b);
      store(out + k, a), store(out + k + kLanes, b);
    }
  }
};

}  // namespace pocketvlm
