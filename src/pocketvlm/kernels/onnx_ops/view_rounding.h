// How attention inside a view rounds what it is given; see view_attention.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector_math.h"

namespace pocketvlm {

constexpr int64_t kViewKeys = 64, kMostDim = 80;            // of a panel; of a head
constexpr float kSteps = 5000;                              // 80 products of two of them fit into 32 bits
constexpr float kParts = 32767, kValueSteps = 1023;         // kViewKeys products of these do too

// To kSteps of its largest value; returns what a step is: not finite where a value is not.
inline float round_row(const float* x, int64_t count, int16_t* out) {
  Floats most = all(1e-30f), finite = all(0.0f);
  for (int64_t e = 0; e < count; e += kLanes) {
    const Floats values_e = load(x + e, first_lanes(count - e));
    most = larger(most, absolute(values_e));
    finite = multiply_add(values_e, all(0.0f), finite);
  }
  const float largest = largest_of(most) + sum_of(finite);
  const Floats steps = all(kSteps / largest);
  for (int64_t e = 0; e < count; e += kLanes)
    store_halves(out + e, to_ints(multiply(load(x + e, first_lanes(count - e)), steps)));
  return largest / kSteps;
}

// Asks for the lines of a head's row, `is_output` where they will be written. Rows lie in pages of their own, where no
// processor looks ahead by itself.
template <bool is_output = false>
void ask_for(const float* row, int64_t dim) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t e = 0; e < dim + kLine - 1; e += kLine) __builtin_prefetch(row + std::min(e, dim - 1), is_output);
}

constexpr int64_t kAhead = 12;  // rows

// Sixteen channels of the values, some of which may be no one's: each to kValueSteps of its own largest value.
struct ValueColumn {
  const float* from;  // [N, .], rows `stride` apart
  int64_t stride, tokens;
  Lanes mine;
  Floats scales, steps;

  ValueColumn(const float* at, int64_t row, int64_t count, Lanes wanted)
      : from(at), stride(row), tokens(count), mine(wanted) {
    Floats most = all(1e-30f), finite = all(0.0f);
    for (int64_t j = 0; j < tokens; ++j) {
      const Floats values_j = load(from + j * stride, mine);
      most = larger(most, absolute(values_j));
      finite = multiply_add(values_j, all(0.0f), finite);
    }
    scales = multiply(add(most, finite), all(1 / kValueSteps));
    steps = divide(all(kValueSteps), most);
  }

  Ints rounded(int64_t j) const {
    return j < tokens ? to_ints(multiply(load(from + j * stride, mine), steps)) : all(0);
  }
};

}  // namespace pocketvlm
