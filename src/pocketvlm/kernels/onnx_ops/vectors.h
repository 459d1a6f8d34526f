// Sixteen values at once, on the registers that this processor has: 16 lanes of AVX-512, or two halves of AVX2, or four
// quarters of NEON. Each of the three headers has the same names; what they compute of finite values is equal to the bit
// but for `reciprocal` and the order of sums.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pocketvlm {

constexpr int kLanes = 16;

}  // namespace pocketvlm

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "vectors_avx512.h"
#elif defined(POCKETVLM_AVX512)
#error "this compiler makes no AVX-512 with VNNI for this processor"
#elif defined(__AVX2__) && defined(__FMA__)
#include "vectors_avx2.h"
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "vectors_neon.h"
#else
#error "this processor has neither AVX-512 with VNNI, nor AVX2 with FMA, nor NEON with dot products"
#endif
